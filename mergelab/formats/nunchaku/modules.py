"""The modules of nunchaku's quantised FLUX.1, and an adapter's layers as layers of these."""

from __future__ import annotations

import torch
from torch import Tensor

from mergelab.errors import LayerError
from mergelab.formats.architectures.naming import Block, Naming, Place, holds
from mergelab.formats.layout import Layout
from mergelab.formats.nunchaku.fusing import FUSED
from mergelab.formats.nunchaku.quantized import QuantizedModel
from mergelab.formats.original import alone, modules_of
from mergelab.formats.writers import FACTOR_SUFFIXES, folded_layer, no_place
from mergelab.layer import BIAS_SUFFIX, NORM_SUFFIX, AdapterData, LoraLayer

DOWN, UP = FACTOR_SUFFIXES[1]
_COMPONENT = "transformer"
_OUT, _IN_MLP = "out_proj", "mlp_fc2"
"""Of a single block diffusers' `proj_out` is two modules: of what comes from the attention, and from the mlp."""
# q, k and v, by the names of the fused modules; under these stand their biases, which are not kept by module.
_QKV = {"qkv_proj": "attn.to_qkv", "qkv_proj_context": "attn.add_qkv_proj"}

_DOUBLE = Block(
    "transformer_blocks.{}",
    "transformer_blocks.{}",
    {
        "norm1.linear": holds("norm1.linear"),
        "norm1_context.linear": holds("norm1_context.linear"),
        **{name: FUSED[module] for name, module in _QKV.items()},
        "out_proj": holds("attn.to_out.0"),
        "out_proj_context": holds("attn.to_add_out"),
        "mlp_fc1": holds("ff.net.0.proj"),
        "mlp_fc2": holds("ff.net.2"),
        "mlp_context_fc1": holds("ff_context.net.0.proj"),
        "mlp_context_fc2": holds("ff_context.net.2"),
    },
)
_SINGLE = Block(
    "single_transformer_blocks.{}",
    "single_transformer_blocks.{}",
    {
        "norm.linear": holds("norm.linear"),
        "qkv_proj": FUSED[_QKV["qkv_proj"]],
        "mlp_fc1": holds("proj_mlp"),
        _OUT: holds("proj_out"),
    },
)
_NAMING = Naming(_COMPONENT, (_DOUBLE, _SINGLE), {}, linear=True)


def nunchaku(data: AdapterData, layout: Layout) -> dict[str, Tensor]:
    """An adapter's factors by nunchaku's modules, not yet packed; of what is not quantised by diffusers' names.

    Raises:
        LayerError: the quantised model has no such module, or one of another shape.
    """
    model = QuantizedModel.of(layout.quantized)
    tensors: dict[str, Tensor] = {}
    modules = modules_of(data, _place)
    for name, module in modules.items():
        layer = folded_layer(module.layer()) if module.layers else None
        for written, part in _parts(name, layer).items() if layer else ():
            model.check(written, part.shape)
            tensors[f"{written}{DOWN}"], tensors[f"{written}{UP}"] = part.lora_A, part.lora_B
        if module.biases:
            block, _, last = name.rpartition(".")
            where = f"{block}.{_QKV[last]}" if last in _QKV else module.original.parts[0]
            tensors[f"{where}.bias"] = module.bias(layer)
    norms = [key for key in data.extras if not key.endswith(BIAS_SUFFIX)]
    if differences := [key for key in norms if key.endswith(NORM_SUFFIX)]:
        raise no_place(differences[0], "nunchaku")
    return tensors | {key.removeprefix(f"{_COMPONENT}."): data.extras[key] for key in norms}


def _place(name: str) -> tuple[str, Place]:
    """nunchaku's module that holds a layer, and where; a module that is not quantised has diffusers' name."""
    path = name.removeprefix(f"{_COMPONENT}.")
    place = _NAMING.place(path)
    if place is None and "transformer_blocks." in path:
        raise LayerError(f"layer {name}: nunchaku's FLUX.1 has no module for it; leave it out: adapter.select()")
    return (place.module.path, place) if place else (path, alone(path))


def _parts(name: str, layer: LoraLayer) -> dict[str, LoraLayer]:
    """The layers that nunchaku has for one of its modules: `proj_out` reads two inputs, which it keeps apart."""
    if not (name.startswith("single_") and name.endswith(f".{_OUT}")):
        return {name: layer}
    width = layer.lora_B.shape[0]
    block = name.removesuffix(_OUT)
    if layer.lora_A.shape[1] <= width:
        raise LayerError(
            f"layer {name}: a change of shape {layer.shape}, expected more inputs than outputs: attention and mlp"
        )
    halves = torch.split(layer.lora_A, [width, layer.lora_A.shape[1] - width], dim=1)
    return {f"{block}{end}": LoraLayer(half, layer.lora_B) for end, half in zip((_OUT, _IN_MLP), halves)}
