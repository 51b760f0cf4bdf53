"""How images are drawn: adapters fused or active, prompts encoded once, batches."""

from __future__ import annotations

import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from accelerate import cpu_offload
from torch import Tensor, nn

import mergelab as ml
from mergelab import miniature
from mergelab.evaluation.executors import worker
from mergelab.evaluation.store import Store
from mergelab.pipelines.encoding import Encodings
from mergelab.pipelines.fingerprints import fingerprint
from mergelab.pipelines.images import generate_image, generate_images
from mergelab.pipelines.staging import Stage, at_home
from tests.evaluation.small import PROMPTS, SMALL, counted

DRAWN = SMALL | {"prompts": PROMPTS[:2], "merges": [{"method": "cat"}], "metrics": ["judge", "lpips"]}
KEYS = ["variant", "prompt_id", "seed", "metric", "reference", "reference_seed"]


def with_generation(**keys: Any) -> dict[str, Any]:
    return DRAWN | {"generation": {"steps": 3, **keys}}


def largest_difference(a: ml.evaluation.Result, b: ml.evaluation.Result) -> int:
    """Of any channel of any image, in steps of 255; the scores are all there, and as near."""
    both = a.scores.merge(b.scores, on=KEYS, suffixes=("_a", "_b"))
    assert len(both) == len(a.scores) == len(b.scores) and not a.failures and not b.failures
    assert (both.value_a - both.value_b).abs().max() < 2e-3
    stores = Store(a.folder), Store(b.folder)

    def difference(row: pd.Series[Any]) -> int:
        first, second = (
            store.load_image(name.removesuffix(".png")) for store, name in zip(stores, (row.image_a, row.image_b))
        )
        return int(((first - second).abs() * 255).round().max())

    return max(difference(row) for _, row in both.drop_duplicates(KEYS[:3]).iterrows())


@pytest.fixture(scope="module")
def plain(pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> ml.evaluation.Result:
    """Fused, one image at a time; "fish" changes the text encoders, too."""
    return ml.evaluate(with_generation(), tmp_path_factory.mktemp("plain"), pipeline=pipeline)


def test_fused_or_active_is_the_same_report(pipeline: Any, plain: ml.evaluation.Result, tmp_path: Path) -> None:
    """To a step of 255; the base model's images are the very same files, all others have names of their own."""
    active = ml.evaluate(with_generation(adapters="active"), tmp_path, pipeline=pipeline)
    assert largest_difference(plain, active) <= 1
    assert [line.partition(" ")[0] for line in active.verdict] == [line.partition(" ")[0] for line in plain.verdict]
    images = [set(result.scores[result.scores.variant != "base"].image) for result in (plain, active)]
    assert not images[0] & images[1]
    bare = [set(result.scores[result.scores.variant == "base"].image) for result in (plain, active)]
    assert bare[0] == bare[1]


def test_a_batch_changes_nothing(
    pipeline: Any, plain: ml.evaluation.Result, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To a step of 255, with a rest that fills no batch, and a negative prompt; images have the same names."""
    batched = ml.evaluate(with_generation(batch=3), tmp_path, pipeline=pipeline)
    assert largest_difference(plain, batched) <= 1
    assert set(plain.scores.image) == set(batched.scores.image)
    drawn = counted(monkeypatch)
    ml.evaluate(with_generation(batch=2), tmp_path, pipeline=pipeline)
    assert not drawn
    keywords = miniature.settings("sdxl") | {"num_inference_steps": 2, "negative_prompt": "a red square"}
    units = [(PROMPTS[0], 3), (PROMPTS[1], 4)]
    for unit, image in zip(units, generate_images(pipeline, units, keywords)):
        assert (image.int() - generate_image(pipeline, *unit, keywords).int()).abs().max() <= 1


def test_a_batch_that_does_not_fit_is_halved(pipeline: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And stays so; what fails for another reason is found, and the rest of its batch drawn."""
    sizes: list[int] = []
    held: list[weakref.ref[Tensor]] = []

    def full(pipe: Any, units: Sequence[tuple[str, int]], keywords: Mapping[str, Any]) -> list[Tensor]:
        sizes.append(len(units))
        assert not any(reference() for reference in held), "what a failed batch held is alive"
        activations = torch.empty(1000)
        held.append(weakref.ref(activations))
        if len(units) > 1:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        if units[0] == (PROMPTS[1], 0):
            raise RuntimeError("this one")
        return generate_images(pipe, units, keywords)

    monkeypatch.setattr(worker, "generate_images", full)
    result = ml.evaluate(with_generation(batch=4), tmp_path, pipeline=pipeline)
    assert sizes == [4, 2] + [1] * 4 * 5
    assert len(result.failures) == 5 and {f["seed"] for f in result.failures} == {0}


def test_prompts_are_encoded_once(pipeline: Any, tmp_path: Path) -> None:
    """For the base model, the adapter of the UNet alone, and whatever else leaves the text encoders as they are."""
    runs = {"text_encoder": 0, "text_encoder_2": 0}

    def count(name: str) -> Any:
        def hook(*_: Any) -> None:
            runs[name] += 1

        return hook

    hooks = [getattr(pipeline, name).register_forward_hook(count(name)) for name in runs]
    small = DRAWN | {"loras": ["miniature/sdxl/ghost", "miniature/sdxl/day"], "metrics": ["judge"]}
    ml.evaluate(small | {"generation": {"steps": 1}}, tmp_path / "unet", pipeline=pipeline)
    assert runs == {"text_encoder": 2, "text_encoder_2": 2}  # two prompts; this model has zeros for an empty one
    ml.evaluate(DRAWN | {"metrics": ["judge"], "generation": {"steps": 1}}, tmp_path / "text", pipeline=pipeline)
    for hook in hooks:
        hook.remove()
    assert runs["text_encoder"] == 2 + 2 * (1 + 3)  # base and stripes; fish, the stack and the merge each anew
    assert "encode_prompt" not in vars(pipeline)


def test_what_is_kept_of_a_prompt(pipeline: Any) -> None:
    """Copies of the same bits, for each state of the text encoders; what holds a tensor is computed each time."""
    with torch.no_grad(), Encodings(pipeline) as encodings:
        first = pipeline.encode_prompt("a sks", negative_prompt="blue")
        first[0].zero_()
        again = pipeline.encode_prompt(prompt="a sks", negative_prompt="blue")
        assert encodings.runs == 1 and again[0].abs().sum() > 0
        encodings.switch("other")
        assert torch.equal(pipeline.encode_prompt("a sks", negative_prompt="blue")[1], first[1])
        encodings.switch("")
        pipeline.encode_prompt("a sks", negative_prompt="blue")
        assert encodings.runs == 2
        given = pipeline.encode_prompt("a sks", prompt_embeds=first[0], pooled_prompt_embeds=first[2])
        assert given[0] is first[0] or encodings.runs == 2
    assert torch.equal(pipeline.encode_prompt("a sks", negative_prompt="blue")[0], again[0])


def test_a_pipeline_keeps_its_own_way_to_encode(pipeline: Any, tmp_path: Path) -> None:
    """A function of the user's in its place is used, and is there afterwards."""
    calls: list[str] = []
    plain = type(pipeline).encode_prompt.__get__(pipeline)

    def own(prompt: str, *args: Any, **keywords: Any) -> Any:
        calls.append(prompt)
        return plain(prompt, *args, **keywords)

    pipeline.encode_prompt = own
    try:
        with Encodings(pipeline):
            pipeline.encode_prompt("a sks")
        assert pipeline.encode_prompt is own and calls == ["a sks"]
    finally:
        del pipeline.encode_prompt


def test_a_pipeline_offloaded_in_groups_is_refused(tmp_path: Path) -> None:
    """By name, before anything is drawn."""
    pipe = miniature.pipeline("sdxl")
    pipe.unet.enable_group_offload(torch.device("cpu"), torch.device("cpu"), offload_type="leaf_level")
    with pytest.raises(
        ml.OptionError, match="unet: its layers are offloaded in groups, and adapters cannot come and go"
    ):
        ml.evaluate(with_generation(), tmp_path / "new", pipeline=pipe)
    assert not (tmp_path / "new").exists()


def test_layers_offloaded_one_by_one_come_home_and_go_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused, combined by a rule, and handed back as it was: offloaded, and drawing the same."""
    pipe = miniature.pipeline("sdxl")
    pipe.set_progress_bar_config(disable=True)

    def offload(device: Any) -> None:
        """As the pipeline does it, which counts devices, and there is no second CPU."""
        pipe._offload_device = torch.device(device)
        for model in pipe.components.values():
            if isinstance(model, nn.Module):
                cpu_offload(model, device, offload_buffers=len(model._parameters) > 0)

    monkeypatch.setattr(pipe, "enable_sequential_cpu_offload", offload)
    config = with_generation() | {"merges": [{"method": "klora"}], "seeds": 1}
    here = ml.evaluate(config, tmp_path / "here", pipeline=pipe)
    identity = fingerprint(pipe)
    pipe.enable_sequential_cpu_offload(device="cpu")
    assert all(parameter.is_meta for parameter in pipe.unet.parameters())
    offloaded = ml.evaluate(config, tmp_path / "offloaded", pipeline=pipe)
    assert largest_difference(here, offloaded) == 0
    assert all(parameter.is_meta for parameter in pipe.unet.parameters())
    with at_home(pipe):
        assert fingerprint(pipe) == identity


def test_weights_that_cannot_be_changed(tmp_path: Path) -> None:
    """Adapters are then active, which is said; asked to fuse, it is an error before anything is drawn."""

    class Packed(nn.Parameter):
        """As quantised weights are."""

    pipe = miniature.pipeline("sdxl")
    pipe.set_progress_bar_config(disable=True)
    layer = pipe.unet.mid_block.attentions[0].proj_in
    layer.weight = Packed(layer.weight.detach(), requires_grad=False)
    with pytest.raises(ml.OptionError, match=r"unet\.mid_block\.attentions\.0\.proj_in\.weight is quantised"):
        Stage(pipe, ["unet.mid_block.attentions.0.proj_in"], fused=True)
    assert Stage(pipe, ["unet.mid_block.attentions.0.proj_out"], fused=True).fused
    with pytest.raises(ml.OptionError, match="is quantised"):
        ml.evaluate(with_generation(adapters="fused"), tmp_path, pipeline=pipe)
    assert not list(tmp_path.glob("images/*"))
    result = ml.evaluate(with_generation() | {"seeds": 1}, tmp_path, pipeline=pipe)
    assert not result.failures
    assert "adapters are drawn unmerged, which takes longer: unet.mid_block" in (tmp_path / "report.html").read_text()
