"""The public API as a user walks it: algebra, weights, report, compare, register, resize, save."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

import mergelab as ml
from mergelab.cli import run
from mergelab.layer import LoraLayer
from mergelab.methods import registry as strategies
from tests.synthetic import SHAPES, adapter, dense, difference, lora, relative

NAMES = list(SHAPES)


def test_the_algebra_is_exact() -> None:
    """`0.8 * a + 0.6 * b - c` has exactly that change, layer by layer, at the sum of the ranks."""
    a, b, c = adapter(1), adapter(2, rank=3, scaling=0.5), adapter(3, rank=2)
    total = 0.8 * a + 0.6 * b - c
    for name in NAMES:
        expected = 0.8 * dense(a, name) + 0.6 * dense(b, name) - dense(c, name)
        assert relative(total.layers[name].delta_weight(), expected) < 1e-6
        assert total.layers[name].rank == 9
    assert (a - a).norm() <= 1e-7 * a.norm()
    assert difference(-a + 2 * a, a) < 1e-6


def test_norm_inner_product_and_cosine_are_the_dense_ones() -> None:
    """All from the factors."""
    a, b = adapter(4), adapter(5)
    flat = [torch.cat([torch.from_numpy(dense(x, n)).flatten() for n in NAMES]) for x in (a, b)]
    assert a.norm() == pytest.approx(float(flat[0].norm()), rel=1e-6)
    assert a.inner(b) == pytest.approx(float(flat[0] @ flat[1]), rel=1e-4)
    assert a.cosine(b) == pytest.approx(a.inner(b) / a.norm() / b.norm())
    assert a.cosine(-2 * a) == pytest.approx(-1.0)
    assert a.cosine(0 * b) == 0.0


def test_a_sum_is_lazy() -> None:
    """Scaling and adding share the tensors of the files; nothing is copied before it is needed."""
    a, b = adapter(6), adapter(7)
    layer = (0.5 * a).layers[NAMES[0]]
    assert layer.lora_A.data_ptr() == a.layers[NAMES[0]].lora_A.data_ptr()
    total = (a + b).layers[NAMES[0]]
    assert [t.lora_A.data_ptr() for t in total.terms] == [x.layers[NAMES[0]].lora_A.data_ptr() for x in (a, b)]


def test_adapters_of_different_models_do_not_add() -> None:
    """Neither by architecture nor by shape."""
    a = ml.Adapter(adapter(8).layers, architecture="sd15", source="a")
    b = ml.Adapter(adapter(8).layers, architecture="flux", source="b")
    with pytest.raises(ml.MergelabError, match=r"a is for sd15, b is for flux"):
        a + b
    other = ml.Adapter({NAMES[0]: lora((5, 5), 2, torch.Generator())}, source="c")
    with pytest.raises(ml.LayerError, match=r"a has shape \(24, 18\), c \(5, 5\)"):
        a + other
    with pytest.raises(TypeError):
        a + 1  # type: ignore[operator]
    with pytest.raises(ml.OptionError, match="finite"):
        float("nan") * a


def test_a_layer_checks_its_shapes() -> None:
    """What does not fit says what was expected and what was found."""
    with pytest.raises(ml.LayerError, match=r"lora_A \(4, 8\) and lora_B \(6, 3\) do not fit"):
        LoraLayer(torch.ones(4, 8), torch.ones(6, 3))


def test_resize_is_the_best_approximation_and_says_what_it_lost() -> None:
    """By rank, by energy, by budget; above the rank that is there nothing changes."""
    a = adapter(9, rank=6)
    small = a.resize(2)
    for name in NAMES:
        s = torch.linalg.svdvals(torch.from_numpy(dense(a, name)).flatten(1))
        error = relative(small.layers[name].delta_weight(), dense(a, name))
        assert error == pytest.approx(float(s[2:].norm() / s.norm()), rel=1e-4)
        row = next(r for r in small.report.layers if r.name == name)
        assert row.relative_error == pytest.approx(error, rel=1e-3)
    assert difference(a.resize(50), a) < 1e-5
    assert "rank capped at 6" in str(a.resize(50).report)
    assert a.resize(0.9).report.retained_energy >= 0.9
    assert sum(a.resize(ml.RankBudget(3)).ranks.values()) == 12


def test_the_report_of_a_merge() -> None:
    """Shares are projections on each input's own change; the frame has a row for each layer."""
    a, b = adapter(10), adapter(11)
    merged = ml.merge([a, b], [1.0, 0.5], "cat")
    frame = merged.report.to_frame()
    assert list(frame["layer"]) == NAMES
    for name in NAMES:
        x, y = dense(a, name), 0.5 * dense(b, name)
        row = frame[frame["layer"] == name].iloc[0]
        assert row["share:adapter10"] == pytest.approx(float(((x + y) * x).sum() / (x * x).sum()), rel=1e-5)
        assert row["share:adapter11"] == pytest.approx(float(((x + y) * y).sum() / (y * y).sum()), rel=1e-5)
    assert merged.report.retained_energy == 1.0
    text = str(merged.report)
    assert "4 layers, ranks 8 to 8" in text and "share of adapter10" in text
    assert "<pre>" in merged.report._repr_html_()


def test_a_rank_above_what_fits_is_capped_and_reported() -> None:
    """Sums have at most the sum of the ranks, anything at most the smaller side."""
    merged = ml.merge([adapter(12), adapter(13)], rank=64)
    assert set(merged.ranks.values()) == {8}
    assert "rank capped at 8" in str(merged.report) and "asked for 64" in str(merged.report)
    dense_merge = ml.merge([adapter(12), adapter(13)], method="ties", rank=64)
    assert dense_merge.ranks == {n: min(s[0], torch.Size(s[1:]).numel()) for n, s in SHAPES.items()}


def test_extras_are_summed_kept_or_reported() -> None:
    """Bias differences add with the weights of their layers; what cannot add is kept if it is one, else a note."""
    bias = f"{NAMES[0]}.lora_B.bias"
    token, norm = "bundle_emb.sks.clip_l", "transformer.transformer_blocks.0.attn.norm_q.weight"
    a = ml.Adapter(adapter(14).layers, {bias: torch.ones(24), token: torch.ones(2), norm: torch.ones(3)}, source="a")
    b = ml.Adapter(adapter(15).layers, {bias: 2 * torch.ones(24), norm: torch.zeros(3)}, source="b")
    merged = ml.merge([a, b], [0.5, -1.0])
    assert merged.extras[bias].tolist() == [-1.5] * 24
    assert merged.extras[token].tolist() == [1.0, 1.0]
    assert norm not in merged.extras
    notes = " ".join(merged.report.notes)
    assert f"{token} taken over from a" in notes and f"{norm} is not merged" in notes
    absent = ml.merge([a, b], [0.0, 1.0])
    assert set(absent.extras) == {bias, norm}
    total = a + 0.5 * ml.Adapter(b.layers, {bias: b.extras[bias]}, source="b")
    assert total.extras[bias].tolist() == [2.0] * 24


def test_compare_measures_agreement() -> None:
    """An adapter with itself, with its negative, with another, and with one of other layers."""
    a, b = adapter(16, source="a"), adapter(17, source="b")
    same = ml.compare([a, 2 * a]).totals()[0]
    assert same["cosine"] == pytest.approx(1.0) and same["sign_conflict"] == pytest.approx(0.0)
    assert same["shared_subspace"] == pytest.approx(1.0, rel=1e-5)
    opposite = ml.compare([a, -1 * a])
    assert opposite.totals()[0]["sign_conflict"] == pytest.approx(1.0)
    assert "against each other" in opposite.verdict() and "same way" in ml.compare([a, 2 * a]).verdict()
    other = ml.compare([a, b])
    assert abs(other.totals()[0]["cosine"]) < 0.3
    assert len(other.to_frame()) == len(NAMES) and "cosine" in other.to_frame()
    assert other.totals()[0]["norm_first"] == pytest.approx(a.norm())
    apart = ml.compare([a.select(NAMES[0]), b.select(NAMES[1])])
    assert "different layers" in apart.verdict()
    assert "times as strong" in ml.compare([a, 5 * b]).verdict()
    assert json.dumps(other.to_dict()) and "<pre>" in other._repr_html_()
    with pytest.raises(ml.OptionError, match="at least 2"):
        ml.compare([a])


def test_compare_plots(tmp_path: Path) -> None:
    """Three panels, a line for each pair."""
    figure = ml.compare([adapter(18), adapter(19), adapter(20)]).plot()
    assert len(figure.axes) == 3 and len(figure.axes[0].lines) == 3
    figure.savefig(tmp_path / "compare.png")
    assert (tmp_path / "compare.png").stat().st_size > 10_000


@pytest.fixture
def registry() -> Iterator[None]:
    """Forget what a test registers."""
    before = dict(strategies._REGISTERED)
    yield
    strategies._REGISTERED.clear()
    strategies._REGISTERED.update(before)


@pytest.mark.parametrize("space", ["delta", "core", "knots", "factors"])
def test_a_registered_rule_works_by_name_everywhere(space: str, registry: None) -> None:
    """A dataclass with options or a plain function; unweighted changes and weights reach it."""

    @ml.register("scaled_sum")
    @dataclass(frozen=True)
    class ScaledSum:
        """A sum, times a factor."""

        factor: float = 1.0

        def __call__(self, changes: torch.Tensor, weights: torch.Tensor, generator: Any) -> torch.Tensor:
            assert changes.dim() == 3 and weights.shape == (2,)
            return self.factor * (changes * weights[:, None, None]).sum(dim=0)

    @ml.register("plain_sum")
    def plain_sum(changes: torch.Tensor, weights: torch.Tensor, generator: Any) -> torch.Tensor:
        return (changes * weights[:, None, None]).sum(dim=0)

    loras, weights = [adapter(21), adapter(22)], [0.5, -0.7]
    expected = ml.merge(loras, weights, "linear", space=space, rank=1000)
    assert difference(ml.merge(loras, weights, "plain_sum", space=space, rank=1000), expected) < 2e-5
    half = ml.merge(loras, weights, "scaled_sum", factor=0.5, space=space, rank=1000)
    scale = 0.25 if space == "factors" else 0.5
    assert difference(half, scale * expected) < 2e-5
    with pytest.raises(ml.OptionError, match=r"no option 'density'; known: factor=1.0"):
        ml.merge(loras, weights, "scaled_sum", density=0.5)
    with pytest.raises(ml.OptionError, match="taken"):
        ml.register("ties")


def test_a_rule_from_a_file_on_the_command_line(
    tmp_path: Path, registry: None, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--import FILE.py --method NAME --option VALUE`."""
    (tmp_path / "mine.py").write_text(
        "import mergelab as ml\nfrom dataclasses import dataclass\n"
        "@ml.register('mine')\n@dataclass(frozen=True)\nclass Mine:\n    factor: float = 1.0\n"
        "    def __call__(self, changes, weights, generator):\n        return self.factor * changes[0]\n"
    )
    x = ml.Adapter(adapter(23).layers, architecture="sd15", source="x")
    x.save(tmp_path / "x.safetensors")
    arguments = ["merge", str(tmp_path / "x.safetensors"), "-o", str(tmp_path / "out.safetensors")]
    arguments += ["--import", str(tmp_path / "mine.py"), "--method", "mine", "--factor", "-2"]
    assert run(arguments) == 0, capsys.readouterr().err
    assert difference(ml.load(tmp_path / "out.safetensors"), -2 * x) < 1e-5


def test_strategies_are_values() -> None:
    """A strategy instance can be given in place of a name; options then replace its own."""
    loras = [adapter(24), adapter(25)]
    by_name = ml.merge(loras, method="ties", density=0.3, space="core")
    by_value = ml.merge(loras, method=ml.Ties(density=0.3, space="core"))
    replaced = ml.merge(loras, method=ml.Ties(density=0.9), density=0.3, space="core")
    assert difference(by_name, by_value) == difference(by_name, replaced) == 0.0
    assert ml.Ties(0.3).density == 0.3 and ml.Ties(density=0.3) == ml.Ties(density=0.3)


def test_the_recipe_is_in_the_file(tmp_path: Path) -> None:
    """Method, options, weights and sha256 of the inputs, modelspec with a true hash, trigger words of all inputs."""
    import hashlib

    for i, word in ((26, "sks, dog"), (27, "szn")):
        metadata = {"modelspec.trigger_phrase": word, "ss_output_name": "x"}
        ml.Adapter(adapter(i).layers, metadata=metadata, architecture="sd15").save(tmp_path / f"{i}.safetensors")
    merged = ml.merge(
        [tmp_path / "26.safetensors", tmp_path / "27.safetensors"], [0.5, {"unet": 0.7}], "ties", density=0.4
    )
    merged.save(tmp_path / "out.safetensors")
    with safe_open(tmp_path / "out.safetensors", framework="pt") as file:
        metadata = file.metadata()
    recipe = json.loads(metadata["mergelab"])
    assert recipe["method"] == "ties" and recipe["options"]["density"] == 0.4 and recipe["options"]["rank"] == "max"
    assert [i["name"] for i in recipe["inputs"]] == ["26", "27"]
    assert [i["weight"] for i in recipe["inputs"]] == [0.5, {"unet": 0.7}]
    digest = hashlib.sha256((tmp_path / "26.safetensors").read_bytes()).hexdigest()
    assert recipe["inputs"][0]["sha256"] == digest and recipe["version"] == ml.__version__
    assert metadata["modelspec.architecture"] == "stable-diffusion-v1/lora"
    assert metadata["modelspec.trigger_phrase"] == "sks, dog, szn"
    assert metadata["modelspec.merged_from"] == "26, 27"
    raw = (tmp_path / "out.safetensors").read_bytes()
    body = raw[8 + int.from_bytes(raw[:8], "little") :]
    assert metadata["modelspec.hash_sha256"] == "0x" + hashlib.sha256(body).hexdigest()


def test_dtype_on_save(tmp_path: Path) -> None:
    """Cast once, on save; float16 that would overflow is an error; by default nothing is rounded."""
    a = adapter(28, scaling=0.3)
    a.save(tmp_path / "bf16.safetensors", dtype="bfloat16")
    loaded = ml.load(tmp_path / "bf16.safetensors")
    assert {x.lora_A.dtype for x in loaded.layers.values()} == {torch.bfloat16}
    assert difference(loaded, a) < 1e-2
    half = {n: LoraLayer(x.lora_A.half(), x.lora_B.half(), 0.3) for n, x in a.layers.items()}
    exact = ml.load(ml.Adapter(half, source="half").save(tmp_path / "exact.safetensors"))
    assert difference(exact, ml.Adapter(half, source="half")) < 1e-7
    with pytest.raises(ml.OutputError, match=r"conv_in.lora_B.*has values up to 2e\+05.*bfloat16"):
        big = LoraLayer(torch.ones(1, 3), torch.full((4, 1), 2e5))
        ml.Adapter({"unet.conv_in": big}, source="big").save(tmp_path / "f16.safetensors", dtype="float16")
    assert not (tmp_path / "f16.safetensors").exists()


def test_select_and_tables() -> None:
    """Parts of an adapter by component or pattern; a short table in the terminal and in a notebook."""
    a = adapter(29, source="a")
    assert set(a.select("unet.*conv*").layers) == {n for n in NAMES if "conv" in n}
    assert set(a.select("unet").layers) == set(NAMES)
    with pytest.raises(ml.OptionError, match="no layer matches 'transformer'"):
        a.select("transformer")
    assert repr(a).startswith("Adapter a (unet of an unknown base model)") and "4 x 4" in repr(a)
    assert "<table>" in a._repr_html_()


def test_progress_is_shown_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    """None in a pipe by default."""
    ml.merge([adapter(30)], progress=True)
    assert "merging" in capsys.readouterr().err
    ml.merge([adapter(30)])
    assert capsys.readouterr().err == ""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("method", ["svd", "ties", "dare", "linear"])
@pytest.mark.parametrize("space", ["delta", "core"])
def test_a_gpu_gives_the_same(method: str, space: str) -> None:
    """To float tolerance."""
    loras = [adapter(31), adapter(32)]
    cpu = ml.merge(loras, method=method, space=space)
    assert difference(ml.merge(loras, method=method, space=space, device="cuda"), cpu) < 1e-3


def test_weights_of_odd_kinds_are_refused() -> None:
    """A pattern that is no string, weights that are no list."""
    with pytest.raises(ml.OptionError, match="expected the name or pattern"):
        ml.merge([adapter(33)], [{1: 2.0}])  # type: ignore[dict-item]
    with pytest.raises(ml.OptionError, match="expected a list of 1"):
        ml.merge([adapter(33)], object())  # type: ignore[arg-type]


def test_parameters_that_require_grad_merge() -> None:
    """A state dict straight from a module in training."""
    grad = torch.nn.Parameter(torch.randn(2, 3)), torch.nn.Parameter(torch.randn(4, 2))
    loaded = ml.load({"unet.conv_in.lora_A.weight": grad[0], "unet.conv_in.lora_B.weight": grad[1]})
    merged = ml.merge([loaded, loaded], [0.5, 0.5], rank=2)
    assert torch.allclose(merged.layers["unet.conv_in"].delta_weight(), (grad[1] @ grad[0]).detach(), atol=1e-6)


def test_a_fused_bias_without_its_weight_is_split_as_flux_is() -> None:
    """q, k, v and four times that."""
    pair = {"lora_A.weight": torch.ones(2, 5), "lora_B.weight": torch.ones(5, 2)}
    tensors = {f"diffusion_model.single_blocks.0.linear2.{k}": v for k, v in pair.items()}
    loaded = ml.load({**tensors, "diffusion_model.single_blocks.3.linear1.diff_b": torch.arange(28.0)})
    assert [len(loaded.extras[k]) for k in sorted(loaded.extras)] == [4, 4, 4, 16]


def test_a_bias_at_scaling_zero_survives_a_peft_folder(tmp_path: Path) -> None:
    """PEFT would multiply it by the scaling of its layer."""
    bias = f"{NAMES[0]}.lora_B.bias"
    silent = ml.Adapter((0 * adapter(34)).layers, {bias: torch.ones(24)}, source="silent")
    assert ml.load(silent.save(tmp_path / "folder", format="peft")).extras[bias].tolist() == [1.0] * 24


def test_a_bias_without_its_layer_has_a_weight_and_goes_through_the_rule() -> None:
    """A module of which only the bias changes; TIES averages biases as it averages weights."""
    bias = "unet.conv_out.lora_B.bias"
    x = ml.Adapter(adapter(35).layers, {bias: torch.tensor([1.0, -2.0])}, source="x")
    assert ml.merge([x], [0.5]).extras[bias].tolist() == [0.5, -1.0]
    twice = ml.merge([x, x], [1.0, 1.0], "ties", density=1.0)
    assert twice.extras[bias].tolist() == [1.0, -2.0]


def test_an_absent_adapter_leaves_no_trace() -> None:
    """At weight 0 it is no parent, its trigger words are not taken over, and it has no share."""
    a, b = (
        ml.Adapter(adapter(s).layers, metadata={"modelspec.trigger_phrase": w}, source=w)
        for s, w in ((36, "one"), (37, "two"))
    )
    merged = ml.merge([a, b], [1.0, 0.0])
    assert merged.metadata["modelspec.merged_from"] == "one"
    assert merged.metadata["modelspec.trigger_phrase"] == "one"
    assert set(merged.report.shares) == {"one"}


def test_autocast_and_gradients_stay_outside() -> None:
    """Arithmetic is float32 whatever surrounds the call."""
    loras = [adapter(38), adapter(39)]
    expected = ml.merge(loras, method="ties")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = ml.merge(loras, method="ties")
        norm = loras[0].norm()
    assert difference(found, expected) == 0.0
    assert norm == loras[0].norm()


def test_the_recipe_does_not_depend_on_addresses(registry: None) -> None:
    """A rule is recorded by its name; a strategy by the name of its method."""
    ml.register("plain")(lambda changes, weights, generator: changes[0])
    recipe = json.loads(ml.merge([adapter(40)], method="plain").metadata["mergelab"])
    assert " at 0x" not in json.dumps(recipe)
    assert json.loads(ml.merge([adapter(40)], method=ml.Ties()).metadata["mergelab"])["method"] == "ties"


def test_vector_space_conveniences() -> None:
    """Division, numpy scalars, and an integer of numpy as a rank."""
    import numpy as np

    one, two = adapter(1), adapter(2)
    assert difference(sum([one, two]), one + two) < 1e-6  # type: ignore[arg-type]
    a = adapter(41)
    assert difference(a / 2, 0.5 * a) == 0.0
    assert difference(a * np.float32(2), 2 * a) < 1e-7
    assert set(a.resize(np.int64(2)).ranks.values()) == {2}
    kept = a.resize(4).layers[NAMES[0]]
    assert kept is a.layers[NAMES[0]]


def test_the_header_of_a_fused_file_says_its_rank(tmp_path: Path) -> None:
    """q, k, v of rank 2 with factors of their own stand in one module of rank 6."""
    generator = torch.Generator().manual_seed(0)
    names = [f"transformer.transformer_blocks.0.attn.to_{part}" for part in "qkv"]
    a = ml.Adapter({n: lora((16, 16), 2, generator) for n in names}, architecture="flux", source="a")
    with safe_open(a.save(tmp_path / "a.safetensors", format="kohya"), framework="pt") as file:
        assert file.metadata()["ss_network_dim"] == "6" and file.metadata()["ss_network_alpha"] == "6"
    again = ml.load(tmp_path / "a.safetensors").resize(1).save(tmp_path / "b.safetensors")
    with safe_open(again, framework="pt") as file:
        assert "ss_network_dim" not in file.metadata()


def test_alpha_in_the_header_without_a_prefix() -> None:
    """A model's own save_lora_adapter writes one config for the whole file."""
    from mergelab.formats.reading import parse

    pair = {"lora_A.weight": torch.ones(4, 3), "lora_B.weight": torch.ones(5, 4)}
    tensors = {f"mid_block.attentions.0.proj_in.{k}": v for k, v in pair.items()}
    header = {"lora_adapter_metadata": json.dumps({"r": 4, "lora_alpha": 8, "target_modules": ["proj_in"]})}
    (layer,) = parse(tensors, header, "file").layers.values()
    assert layer.scaling == 2.0


def test_a_merge_that_cancels_says_so() -> None:
    """What float32 leaves of zero is no result."""
    merged = ml.merge([adapter(44), adapter(44)], [1.0, -1.0])
    assert "the inputs cancel" in str(merged.report) and repr(merged.report) == str(merged.report)


def test_names_and_seeds_that_would_mislead(tmp_path: Path) -> None:
    """A name no tool knows a safetensors file by, a seed that is no integer, a local path that looks like the Hub's."""
    for name in ("out.bin", "out.txt", "out"):
        with pytest.raises(ml.OutputError, match=r"ends in \.safetensors"):
            adapter(45).save(tmp_path / name)
    with pytest.raises(ml.OptionError, match="expected an integer"):
        ml.merge([adapter(45)], seed=1.5)  # type: ignore[arg-type]
    with pytest.raises(ml.SourceError, match="no such file"):
        ml.load("tests/data/nowhere/x.safetensors")


def test_a_unet_and_a_transformer_do_not_go_together() -> None:
    """Though neither says what it is for, as an adapter of an unknown UNet, or of a text model."""
    block, other = lora((8, 8), 2, torch.Generator()), lora((8, 8), 2, torch.Generator())
    a = ml.Adapter({"unet.mid_block.proj_in": block}, source="a")
    b = ml.Adapter({"transformer.proj_out": other}, architecture="flux", source="b")
    for refused in (lambda: ml.merge([a, b]), lambda: ml.compare([b, a]), lambda: a + b):
        with pytest.raises(ml.ArchitectureError, match=r"a changes a UNet \(Stable Diffusion\), b changes a transf"):
            refused()
