"""Adapters as vectors: sums, norms, parts, ranks."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import mergelab as ml
from mergelab.layer import LoraLayer
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


def test_a_unet_and_a_transformer_do_not_go_together() -> None:
    """Though neither says what it is for, as an adapter of an unknown UNet, or of a text model."""
    block, other = lora((8, 8), 2, torch.Generator()), lora((8, 8), 2, torch.Generator())
    a = ml.Adapter({"unet.mid_block.proj_in": block}, source="a")
    b = ml.Adapter({"transformer.proj_out": other}, architecture="flux", source="b")
    for refused in (lambda: ml.merge([a, b]), lambda: ml.compare([b, a]), lambda: a + b):
        with pytest.raises(ml.ArchitectureError, match=r"a changes a UNet \(Stable Diffusion\), b changes a transf"):
            refused()


def test_inner_products_are_of_one_base_model() -> None:
    """As sums are: no bare error of torch, and no number where only some names agree."""
    a = ml.Adapter({"unet.x": LoraLayer(torch.ones(2, 3), torch.ones(4, 2))}, architecture="sd15")
    others = {
        "different base models": replace(a, architecture="sdxl"),
        r"layer unet\.x: .*\(4, 3\).*\(4, 5\): they do not go": replace(
            a, layers={"unet.x": LoraLayer(torch.ones(2, 5), torch.ones(4, 2))}
        ),
    }
    for sentence, other in others.items():
        for product in (a.inner, a.cosine, a.__add__):
            with pytest.raises((ml.ArchitectureError, ml.LayerError), match=sentence):
                product(other)


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


def test_select_and_tables() -> None:
    """Parts of an adapter by component or pattern; a short table in the terminal and in a notebook."""
    a = adapter(29, source="a")
    assert set(a.select("unet.*conv*").layers) == {n for n in NAMES if "conv" in n}
    assert set(a.select("unet").layers) == set(NAMES)
    with pytest.raises(ml.OptionError, match="no layer matches 'transformer'"):
        a.select("transformer")
    assert repr(a).startswith("Adapter a (unet of an unknown base model)") and "4 x 4" in repr(a)
    assert "<table>" in a._repr_html_()
