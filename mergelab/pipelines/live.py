"""Low-rank changes in a live model: put around its modules by PEFT, weighed, and taken away without a trace."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from mergelab.errors import LayerError
from mergelab.pipelines.opening import quietly

PeftLayer = Any
"""A LoRA layer of PEFT: which class it is depends on the module that it wraps."""

_RECORD = "_mergelab_applied"
# Attributes of a model that tell diffusers and transformers of its adapters, and the record of what was there before.
_MARKS = ("peft_config", "_hf_peft_config_loaded", _RECORD)


@dataclass(frozen=True)
class ModuleChange:
    """What an adapter does to one module of a model.

    Attributes:
        layer: its canonical name.
        lora_A, lora_B: in the shape and dtype that the module asks for.
        scaling: with the weight of the adapter in it.
    """

    layer: str
    lora_A: Tensor
    lora_B: Tensor
    scaling: float


@dataclass
class Applied:
    """What was put into one model.

    Attributes:
        names: of the adapters, as PEFT and diffusers know them, in the order given; not all need change this model.
        layers: canonical name -> PEFT's layer.
        trainable: name of a parameter of the model -> whether it asked for gradients.
        marks: those of the model's attributes that PEFT sets, as they were.
        detach: takes away what was attached to the model since.
    """

    names: tuple[str, ...]
    layers: dict[str, PeftLayer]
    trainable: dict[str, bool]
    marks: dict[str, Any]
    detach: Callable[[], None] | None = field(default=None)

    def weigh(self, factors: Mapping[str, Sequence[float]] | None = None) -> None:
        """Sets how strong each adapter is in each layer, as a factor of its weight; without factors as applied.

        Args:
            factors: canonical name -> one factor for each adapter, in order; one of 0 costs nothing.
        """
        for layer, module in self.layers.items():
            own = dict(zip(self.names, factors[layer] if factors else [1.0] * len(self.names)))
            module.set_adapter([name for name in own if name in module.lora_A and own[name]], inference_mode=True)
            for name in module.lora_A:
                module.set_scale(name, own[name])


def applied_to(model: nn.Module) -> Applied | None:
    """What was put into this model, or None."""
    found: Applied | None = vars(getattr(model, "_orig_mod", model)).get(_RECORD)
    return found


def is_wrapped(model: nn.Module) -> bool:
    """Whether a model carries layers of PEFT, whoever put them there."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    return any(isinstance(module, BaseTunerLayer) for module in model.modules())


def put_in(model: nn.Module, names: Sequence[str], changes: Mapping[str, Mapping[str, ModuleChange]]) -> None:
    """Wraps modules of a model in PEFT's layers, all adapters active. What fails half way is taken out again.

    Args:
        model: without adapters.
        names: of all adapters.
        changes: name of an adapter -> path of a module -> its change.

    Raises:
        LayerError: PEFT has no layer for a module.
    """
    take_out(model)  # the record of adapters that were unloaded by other means
    marks = {key: vars(model)[key] for key in _MARKS if key in vars(model)}
    asked = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    record = Applied(tuple(names), {}, asked, marks)
    setattr(model, _RECORD, record)
    try:
        for name, own in changes.items():
            _inject(model, name, own)
            record.layers.update({change.layer: model.get_submodule(path) for path, change in own.items()})
        record.weigh()
        model._hf_peft_config_loaded = True  # type: ignore[assignment]  # what diffusers and transformers ask for
    except BaseException:
        take_out(model)
        raise


def take_out(model: nn.Module) -> None:
    """Gives a model back as it was before `put_in`, if anything was."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    record = applied_to(model)
    if record is None:
        return
    if record.detach:
        record.detach()
    for path, module in list(model.named_modules()):
        if isinstance(module, BaseTunerLayer):
            parent, _, child = path.rpartition(".")
            setattr(model.get_submodule(parent), child, module.get_base_layer())
    for name, parameter in model.named_parameters():  # offloading has put others in their place
        parameter.requires_grad_(record.trainable.get(name, parameter.requires_grad))
    for key in _MARKS:
        vars(model).pop(key, None)
    vars(model).update(record.marks)


def _inject(model: nn.Module, name: str, changes: Mapping[str, ModuleChange]) -> None:
    """One adapter. Every path is matched whole: PEFT takes a plain name for the end of any other, too."""
    from peft import LoraConfig, inject_adapter_in_model

    ranks = Counter(change.lora_A.shape[0] for change in changes.values())
    usual = ranks.most_common(1)[0][0]
    config = LoraConfig(
        r=usual,
        lora_alpha=usual,
        target_modules=_any_of(changes),
        rank_pattern={  # one pattern for each rank: PEFT tries them one by one on every module
            f"^(?:{_any_of(path for path, change in changes.items() if change.lora_A.shape[0] == rank)})": rank
            for rank in ranks
            if rank != usual
        },
        inference_mode=True,
    )
    try:
        with quietly():
            inject_adapter_in_model(config, model, name, low_cpu_mem_usage=True)
    except ValueError as error:
        raise LayerError(f"{name}: PEFT cannot wrap a module of {type(model).__name__}: {error}") from error
    for path, change in changes.items():
        layer: PeftLayer = model.get_submodule(path)
        for part, factor in ((layer.lora_A[name], change.lora_A), (layer.lora_B[name], change.lora_B)):
            if part.weight.shape != factor.shape:
                raise LayerError(
                    f"{name}: layer {change.layer}: a factor is {tuple(factor.shape)}, and PEFT expects "
                    f"{tuple(part.weight.shape)} around this {type(layer.get_base_layer()).__name__}"
                )
            moved = factor.detach().to(layer.get_base_layer().weight.device, copy=True)
            part.weight = nn.Parameter(moved.contiguous(), requires_grad=False)
        layer.lora_alpha[name] = change.scaling * layer.r[name]  # pipe.set_adapters scales by this
        layer.eval()


def _any_of(paths: Any) -> str:
    return "|".join(map(re.escape, paths))
