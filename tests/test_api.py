"""A merge as a user calls it: weights, ranks, extras, report, progress."""

from __future__ import annotations

import pytest
import torch

import mergelab as ml
from tests.synthetic import SHAPES, adapter, dense, difference

NAMES = list(SHAPES)


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


def test_a_merge_that_cancels_says_so() -> None:
    """What float32 leaves of zero is no result."""
    merged = ml.merge([adapter(44), adapter(44)], [1.0, -1.0])
    assert "the inputs cancel" in str(merged.report) and repr(merged.report) == str(merged.report)
