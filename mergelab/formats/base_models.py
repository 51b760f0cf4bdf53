"""Whether adapters are for one base model."""

from __future__ import annotations

import re
from collections.abc import Sequence

from mergelab.errors import ArchitectureError
from mergelab.formats.architectures.architecture import Architecture
from mergelab.formats.architectures.registry import ARCHITECTURES
from mergelab.formats.names import is_module_of
from mergelab.formats.recognising import fitting
from mergelab.layer import AdapterData, same_weight

_REMEDY = "use adapters of one base model"


def check_base_models(adapters: Sequence[AdapterData], names: Sequence[str]) -> None:
    """Raises where adapters are not for one base model.

    One whose base model is not known goes with a known one only if all its layers exist there, with fitting shapes. A
    transformer's layers have to be that one's alone: many have the names and the width of others.

    Raises:
        ArchitectureError: two architectures, a UNet and a transformer, or layers that the other's model has not.

    Example:
        >>> import torch
        >>> from mergelab import Adapter, LoraLayer
        >>> layer = LoraLayer(torch.ones(2, 3), torch.ones(4, 2))
        >>> a, b = (Adapter({f"{part}.conv_in": layer}) for part in ("unet", "transformer"))
        >>> check_base_models([a, b], ["a", "b"])
        Traceback (most recent call last):
            ...
        mergelab.errors.ArchitectureError: adapters for different base models do not go together: a changes a UNet
        (Stable Diffusion), b changes a transformer; use adapters of one base model
    """
    known = {a.architecture: f"{name} is for {a.architecture}" for a, name in zip(adapters, names) if a.architecture}
    drawn = {
        word: f"{name} changes {word}"
        for component, word in (("unet", "a UNet (Stable Diffusion)"), ("transformer", "a transformer"))
        for adapter, name in zip(adapters, names)
        if any(layer.startswith(f"{component}.") for layer in adapter.layers)
    }
    if several := next((said for said in (known, drawn) if len(said) > 1), None):
        raise ArchitectureError(
            f"adapters for different base models do not go together: {', '.join(several.values())}; {_REMEDY}"
        )
    architecture = ARCHITECTURES.get(next(iter(known), ""))
    if architecture:
        shapes = _shapes([adapter for adapter in adapters if adapter.architecture])
        for adapter, name in zip(adapters, names):
            if not adapter.architecture:
                _check_unknown(adapter, name, architecture, shapes)


def _check_unknown(adapter: AdapterData, name: str, architecture: Architecture, shapes: _Shapes) -> None:
    own = {layer: change.shape for layer, change in adapter.layers.items() if layer.startswith("transformer.")}
    possible = fitting(own) if own else []
    others = [other.title for other in possible if other is not architecture]
    if others and architecture in possible:
        raise ArchitectureError(
            f"{name} may be for {architecture.title}, as the others are, or for {', '.join(others)}, and nothing in "
            f"the file tells: load it with architecture={architecture.id!r} (on the command line --architecture) if it "
            "is"
        )
    for layer, change in adapter.layers.items():
        # Of a layer that both have, it is said where the two meet.
        there = [change.shape] if layer in shapes else shapes.get(_kind(layer), [change.shape])
        if not is_module_of(architecture, layer):
            why = f"its layer {layer} is none of {architecture.title}'s"
        elif not any(same_weight(change.shape, shape) for shape in there):
            why = f"its layer {layer} has shape {change.shape}, where {architecture.title} has {there[0]}"
        else:
            continue
        raise ArchitectureError(
            f"adapters for different base models do not go together: the base model of {name} is not known, and {why}; "
            f"{_REMEDY}"
        )


_Shapes = dict[str, list[tuple[int, ...]]]


def _shapes(adapters: Sequence[AdapterData]) -> _Shapes:
    """The shapes of weights, by the name of a layer, and by that without its numbers."""
    shapes: _Shapes = {}
    for adapter in adapters:
        for name, layer in adapter.layers.items():
            for key in {name, _kind(name)}:
                if layer.shape not in (there := shapes.setdefault(key, [])):
                    there.append(layer.shape)
    return shapes


def _kind(layer: str) -> str:
    return re.sub(r"(?<=\.)\d+(?=\.)", "{}", layer)
