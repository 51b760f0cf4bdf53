"""Saved in a narrow dtype: the change is the same to rounding, or the file is refused; against dense float64."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import torch
from torch import Tensor

import mergelab as ml
from mergelab import Adapter, LoraLayer

UNET = "unet.down_blocks.1.attentions.0.proj_in"
CONV = "unet.down_blocks.0.resnets.0.conv1"
SPLIT = tuple(f"transformer.transformer_blocks.0.attn.{part}" for part in ("to_q", "to_k", "to_v"))
FORMATS = ("diffusers", "kohya", "peft")
# Two factors, each rounded to a half of eps at most.
ROUNDING = torch.finfo(torch.float16).eps


def factors(seed: int, shape: tuple[int, ...] = (48, 32), rank: int = 4) -> tuple[Tensor, Tensor]:
    """lora_A and lora_B with entries of order one."""
    generator = torch.Generator().manual_seed(seed)
    down = torch.randn(rank, *shape[1:], generator=generator)
    return down, torch.randn(shape[0], rank, *[1] * (len(shape) - 2), generator=generator)


def component(tensor: Tensor, dim: int, index: int, factor: float) -> Tensor:
    """The tensor with one row or column times a factor."""
    scale = torch.ones(tensor.shape[dim])
    scale[index] = factor
    return tensor * scale.reshape([-1 if i == dim else 1 for i in range(tensor.dim())])


def tiny_up() -> LoraLayer:
    down, up = factors(0)
    return LoraLayer(down, up * 1e-7)


def tiny_down() -> LoraLayer:
    down, up = factors(1)
    return LoraLayer(down * 3e-8, up)


def tiny_scaling() -> LoraLayer:
    return LoraLayer(*factors(2), scaling=1e-8)


def tiny_component_that_counts() -> LoraLayer:
    """One column of lora_B is lost in float16, and its row of lora_A makes it as large as the others."""
    down, up = factors(3)
    return LoraLayer(component(down, 0, 1, 1e4), component(up, 1, 1, 1e-8))


def tiny_component_beside_large_ones() -> LoraLayer:
    down, up = factors(4)
    return LoraLayer(down, component(up, 1, 2, 1e-8))


def tiny_on_both_sides() -> LoraLayer:
    """One component has a tiny row, another a tiny column."""
    down, up = factors(5)
    return LoraLayer(component(down, 0, 0, 1e-7), component(component(up, 1, 1, 1e-7), 1, 0, 50.0))


def tiny_convolution() -> LoraLayer:
    down, up = factors(6, (24, 16, 3, 3))
    return LoraLayer(down, up * 1e-7)


def tiny_bfloat16() -> LoraLayer:
    down, up = factors(7)
    return LoraLayer(down.bfloat16(), (up * 1e-9).bfloat16())


def zero_component() -> LoraLayer:
    down, up = factors(8)
    return LoraLayer(component(down, 0, 3, 1e-7), component(up * 1e-7, 1, 3, 0.0))


def large_down() -> LoraLayer:
    """lora_A overflows in float16, and what is left of lora_B is far from exact."""
    down, up = factors(14)
    return LoraLayer(down * 1e6, up * 1e-6)


def large_up() -> LoraLayer:
    """Far outside of float16 on both sides, and so are the squares of float32."""
    down, up = factors(15)
    return LoraLayer(down * 1e-20, up * 1e20)


def large_down_beside_a_lost_up() -> LoraLayer:
    down, up = factors(16)
    return LoraLayer(down * 7e4, up * 1e-8)


def large_down_that_loses_nothing() -> LoraLayer:
    """lora_B alone would do as it is."""
    down, up = factors(17)
    return LoraLayer(down * 7e4, up * 1e-3)


def large_component() -> LoraLayer:
    """One row of lora_A overflows, another is tiny."""
    down, up = factors(18)
    return LoraLayer(component(component(down * 1e-4, 0, 1, 1e9), 0, 2, 1e-4), up * 0.01)


def large_convolution() -> LoraLayer:
    down, up = factors(19, (24, 16, 3, 3))
    return LoraLayer(down * 1e6, up * 1e-6)


def large_bfloat16() -> LoraLayer:
    down, up = factors(20)
    return LoraLayer((down * 1e6).bfloat16(), (up * 1e-6).bfloat16())


def large_beyond_a_power_of_float32() -> LoraLayer:
    """What is to be shifted is more than a power of two of float32 can be."""
    return LoraLayer(torch.full((1, 32), 2.0**-140), torch.full((48, 1), 2.0**125))


KIN: tuple[Callable[[], LoraLayer], ...] = (
    tiny_up,
    tiny_down,
    tiny_scaling,
    tiny_component_that_counts,
    tiny_component_beside_large_ones,
    tiny_on_both_sides,
    tiny_convolution,
    tiny_bfloat16,
    zero_component,
    large_down,
    large_up,
    large_down_beside_a_lost_up,
    large_down_that_loses_nothing,
    large_component,
    large_convolution,
    large_bfloat16,
    large_beyond_a_power_of_float32,
)


def dense(layer: LoraLayer) -> Tensor:
    """The change in float64, from the definition."""
    return layer.scaling * layer.lora_B.double().flatten(1) @ layer.lora_A.double().flatten(1)


def error(layer: LoraLayer, expected: LoraLayer) -> float:
    exact = dense(expected)
    return float((dense(layer) - exact).norm() / exact.norm())


def saved(adapter: Adapter, folder: Path, format: str, dtype: str = "float16") -> Adapter:
    return ml.load(adapter.save(folder / ("peft" if format == "peft" else "x.safetensors"), format=format, dtype=dtype))


def stored_dtypes(tensors: Mapping[str, Tensor]) -> set[torch.dtype]:
    return {tensor.dtype for key, tensor in tensors.items() if not key.endswith(".alpha")}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kin", KIN, ids=lambda kin: kin.__name__)
def test_the_change_survives(kin: Callable[[], LoraLayer], format: str, tmp_path: Path) -> None:
    """Whatever is tiny in whichever format: the change that is read again is the same to rounding."""
    layer = kin()
    name = CONV if layer.lora_A.dim() == 4 else UNET
    adapter = Adapter({name: layer, UNET.replace("0.proj", "1.proj"): LoraLayer(*factors(9))}, architecture="sdxl")
    assert error(saved(adapter, tmp_path, format).layers[name], layer) <= ROUNDING  # type: ignore[arg-type]
    assert stored_dtypes(adapter.state_dict(format, "float16")) == {torch.float16}


@pytest.mark.parametrize("format", FORMATS)
def test_a_component_is_exact_in_float32(format: str) -> None:
    """Balanced factors of powers of two hold exactly the change that was given."""
    generator = torch.Generator().manual_seed(0)
    down = torch.randint(1, 9, (3, 16), generator=generator).float()
    up = torch.randint(1, 9, (8, 3), generator=generator).float() * 2.0**-24
    tensors = Adapter({UNET: LoraLayer(down, up)}).state_dict(format, "float16")
    (lora_a,) = (t for key, t in tensors.items() if key.endswith(("lora_A.weight", "lora_down.weight")))
    (lora_b,) = (t for key, t in tensors.items() if key.endswith(("lora_B.weight", "lora_up.weight")))
    assert torch.equal(lora_b.float() @ lora_a.float(), up @ down)


@pytest.mark.parametrize("format", FORMATS)
def test_what_loses_nothing_is_cast_as_it_is(format: str) -> None:
    """No bit differs from a plain cast where that rounds and no more, single subnormal entries included."""
    down, up = factors(10)
    up[0, 0], up[5, 2], down[1, 7] = 1e-7, 3e-8, 0.0
    adapter = Adapter({UNET: LoraLayer(down, up)})
    plain = {key: tensor.half() for key, tensor in adapter.state_dict(format).items() if not key.endswith(".alpha")}
    narrow = adapter.state_dict(format, "float16")
    assert all(torch.equal(narrow[key], tensor) for key, tensor in plain.items())


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("lost", [1e-11, 1e-14])
def test_what_cannot_be_held_is_refused(format: str, lost: float, tmp_path: Path) -> None:
    """The message names file, layer, what is lost and the remedy; nothing is written, and bfloat16 holds it."""
    down, up = factors(11)
    layer = LoraLayer(down * 1e-3, up * lost)
    adapter = Adapter({UNET: layer}, architecture="sd15", source="tiny.safetensors")
    with pytest.raises(
        ml.OutputError, match=r"tiny.safetensors: layer .*proj_in: .* % of it .*float16.*bfloat16 or"
    ) as e:
        saved(adapter, tmp_path, format)
    assert "attentions" in str(e.value)
    assert not list(tmp_path.iterdir())
    assert error(saved(adapter, tmp_path, format, "bfloat16").layers[UNET], layer) < 0.01  # type: ignore[arg-type]


@pytest.mark.parametrize("format", FORMATS)
def test_a_change_of_zero_is_kept(format: str, tmp_path: Path) -> None:
    """lora_B as training begins, beside whatever values of lora_A."""
    down, up = factors(21)
    adapter = Adapter({UNET: LoraLayer(down * 1e6, up * 0)}, architecture="sdxl")
    layer = saved(adapter, tmp_path, format).layers[UNET]
    assert not layer.lora_B.any()
    assert layer.lora_A.isfinite().all()


@pytest.mark.parametrize("format", FORMATS)
def test_a_change_too_large_is_refused(format: str, tmp_path: Path) -> None:
    """One beyond float16 overflows, however its factors share it; the value and the remedy are named."""
    down, up = factors(22)
    for a, b in ((1.0, 1e6), (1e6, 1.0), (1e9, 1e-3)):
        adapter = Adapter({UNET: LoraLayer(down * a, up * b)}, architecture="sdxl", source="large.safetensors")
        with pytest.raises(
            ml.OutputError, match=r"large.safetensors: .*proj_in.*values up to .*e\+0.*float16.*bfloat16 or float32$"
        ):
            saved(adapter, tmp_path, format)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("down", "up", "dtype", "remedy"),
    [
        (1.0, 1e300, "float16", "float64"),
        (1.0, 1e300, "bfloat16", "float64"),
        (1.0, 1e300, "float32", "float64"),
        (1.0, 3.4e38, "float16", "float32"),
        (1.0, 3.4e38, "bfloat16", "float32"),
        (1e-25, 1e-25, "float16", "bfloat16 or float32"),
        (1e-45, 1e-40, "float16", "float64"),
        (1e-45, 1e-40, "float32", "float64"),
    ],
)
def test_the_remedy_holds_what_is_saved(down: float, up: float, dtype: str, remedy: str) -> None:
    """No dtype is named that would be refused in its turn."""
    layer = LoraLayer(torch.full((2, 8), down, dtype=torch.float64), torch.full((8, 2), up, dtype=torch.float64))
    adapter = Adapter({UNET: layer})
    with pytest.raises(ml.OutputError, match=f"{dtype}.*; save it as {remedy}$"):
        adapter.state_dict(dtype=dtype)
    for wider in remedy.split(" or "):
        assert adapter.state_dict(dtype=wider)


def test_both_factors_lost_are_a_whole() -> None:
    """Not twice as much as there was."""
    down, up = factors(23)
    with pytest.raises(ml.OutputError, match=r": 100 % of it"):
        Adapter({UNET: LoraLayer(down * 1e-12, up * 1e-12)}).state_dict(dtype="float16")


@pytest.mark.parametrize("format", FORMATS)
def test_biases_are_not_lost(format: str, tmp_path: Path) -> None:
    """An extra has no second factor to be balanced with."""
    extras = {f"{UNET}.lora_B.bias": torch.linspace(1e-9, 2e-8, 48)}
    adapter = Adapter({UNET: LoraLayer(*factors(12))}, extras, architecture="sdxl", source="a")
    with pytest.raises(ml.OutputError, match=r"a: .*(diff_b|bias): 100 % of it.*float16"):
        saved(adapter, tmp_path, format)
    (again,) = saved(adapter, tmp_path, format, "float32").extras.values()
    torch.testing.assert_close(again, extras[f"{UNET}.lora_B.bias"], rtol=1e-6, atol=0)


def flux(*factors_of_up: float, shared: bool = True) -> Adapter:
    """q, k and v of a FLUX block, with one lora_A or each with its own, and a lora_B each times its factor."""
    parts = [factors(0 if shared else i, (32, 32)) for i in range(3)]
    ups = [factors(i, (32, 32))[1] for i in range(3)]
    layers = {n: LoraLayer(d, u * f) for n, (d, _), u, f in zip(SPLIT, parts, ups, factors_of_up)}
    return Adapter(layers, architecture="flux")


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "own"])
@pytest.mark.parametrize("sizes", [(1e-7, 1e-7, 1e-7), (1e-7, 1.0, 1e-3), (1.0, 1.0, 1e-6)], ids=str)
@pytest.mark.parametrize("format", FORMATS)
def test_parts_of_a_fused_module(format: str, sizes: tuple[float, float, float], shared: bool, tmp_path: Path) -> None:
    """Each part survives, fused or not; what shared its lora_A still does, and is fused again at its old rank."""
    adapter = flux(*sizes, shared=shared)
    again = saved(adapter, tmp_path, format)
    for name, layer in adapter.layers.items():
        assert error(again.layers[name], layer) <= ROUNDING, name  # type: ignore[arg-type]
    if shared:
        downs = [layer.lora_A for layer in again.layers.values()]
        assert all(torch.equal(downs[0], down) for down in downs[1:])
        (fused,) = (t for key, t in again.state_dict("kohya").items() if key.endswith("lora_down.weight"))
        assert len(fused) == 4


@pytest.mark.parametrize("format", FORMATS)
def test_parts_with_a_large_lora_a(format: str, tmp_path: Path) -> None:
    """What overflows is shared by all parts, and still is."""
    adapter = flux(1e-6, 1e-5, 3e-7)
    layers = {n: LoraLayer(x.lora_A * 1e6, x.lora_B) for n, x in adapter.layers.items()}
    again = saved(Adapter(layers, architecture="flux"), tmp_path, format)
    for name, layer in layers.items():
        assert error(again.layers[name], layer) <= ROUNDING, name  # type: ignore[arg-type]
    downs = [layer.lora_A for layer in again.layers.values()]
    assert all(torch.equal(downs[0], down) for down in downs[1:])


def test_parts_too_unlike_to_share() -> None:
    """Where one lora_A cannot serve all parts, each has its own rather than being lost."""
    adapter = flux(1e-8, 1e4, 1.0)
    tensors = adapter.state_dict("diffusers", "float16")
    for name, layer in adapter.layers.items():
        found = LoraLayer(tensors[f"{name}.lora_A.weight"], tensors[f"{name}.lora_B.weight"])
        assert error(found, layer) <= ROUNDING, name


@pytest.mark.parametrize("method", ["cat", "svd", "linear"])
def test_merges_of_tiny_adapters(method: str, tmp_path: Path) -> None:
    """The exact sums of two adapters, saved in float16."""
    layers = [tiny_up(), LoraLayer(factors(13)[0], factors(13)[1] * 1e-7)]
    adapters = [Adapter({UNET: layer}) for layer in layers]
    merged = ml.merge(adapters, [0.5, 0.3], method=method, rank="sum")
    again = saved(merged, tmp_path, "diffusers").layers[UNET]
    exact = 0.5 * dense(layers[0]) + 0.3 * dense(layers[1])
    assert float((dense(again) - exact).norm() / exact.norm()) <= ROUNDING  # type: ignore[arg-type]
