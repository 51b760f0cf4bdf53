"""Where a tuned model differs from its base model: in layers and biases, and in what no adapter can hold."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from tqdm import tqdm

from mergelab.checks import did_you_mean
from mergelab.errors import ArchitectureError, LayerError, OptionError
from mergelab.formats.architectures import ARCHITECTURES
from mergelab.formats.architectures.evidence import DENOISERS
from mergelab.formats.base_weights import BaseWeights
from mergelab.formats.names import is_module_of
from mergelab.layer import BIAS_SUFFIX, same_weight
from mergelab.tables import counted

# The last step of what is looked up in, not multiplied by.
_EMBEDDINGS = ("token_embedding", "position_embedding", "shared")


@dataclass(frozen=True)
class Differences:
    """What a tuned model has that its base model has not.

    Attributes:
        layers: canonical names of those whose weights differ.
        compared: how many layers both have.
        biases: differences of biases, by the name of an adapter's extra.
        notes: what differs and is no layer's, and what could not be compared.
    """

    layers: tuple[str, ...]
    compared: int
    biases: dict[str, Tensor]
    notes: tuple[str, ...]


def differences(
    tuned: BaseWeights, base: BaseWeights, components: Sequence[str] | None = None, progress: bool | None = None
) -> Differences:
    """Compares two models of one architecture, tensor by tensor.

    Where the two are stored in different dtypes, what is equal when rounded to that of the other does not differ.

    Args:
        tuned, base: of one known architecture.
        components: which of their models; by default all that both have.
        progress: show a bar; by default on a terminal only.

    Raises:
        OptionError: there is no such component in both.
        ArchitectureError: they have no layer in common.
        LayerError: the denoiser of one has a layer that the other's has not, or one of another shape; one is quantised.

    Example:
        >>> from mergelab.formats.base_weights import open_base
        >>> found = differences(open_base("miniature/sdxl"), open_base("miniature/sdxl"))
        >>> found.layers, found.compared
        ((), 122)
    """
    own, others = _layers(tuned), _layers(base)
    asked = _asked([tuned, base], [own, others], components)
    own, others = ({name for name in names if _component(name) in asked} for names in (own, others))
    notes = _one_sided(tuned, base, own, others)
    names = [name for name in tuned.names if name in own & others]
    if not names:
        raise ArchitectureError(f"{tuned.title} and {base.title} have no layer in common; are they of one base model?")
    tuned.check(names)
    base.check(names)
    for name in names:
        if not same_weight(tuned.shape(name), base.shape(name)):
            raise LayerError(
                f"layer {name}: {tuned.title} has a weight of shape {tuned.shape(name)}, expected {base.shape(name)} "
                f"as in {base.title}; is it the base model of another variant (inpainting, say)?"
            )
    only = asked if components else None
    rest = _rest(tuned, own, only), _rest(base, others, only)
    bar = tqdm(
        total=len(names) + len(rest[0] & rest[1]),
        desc="comparing",
        unit="tensor",
        disable=None if progress is None else not progress,
    )
    with bar:
        layers: list[str] = []
        biases: dict[str, Tensor] = {}
        for name in names:
            if not _alike(tuned, base, f"{name}.weight"):
                layers.append(name)
            biases |= _bias(tuned, base, name)
            bar.update()
        notes += _beside(tuned, base, *rest, bar.update)
    dtypes = [{model.dtype(f"{name}.weight") for name in names} for model in (tuned, base)]
    if dtypes[0] != dtypes[1]:
        stored = (f"{model.title} in {', '.join(sorted(own))}" for model, own in zip((tuned, base), dtypes))
        notes.append(f"stored are {' and '.join(stored)}: the difference holds the rounding of the coarser one")
    return Differences(tuple(layers), len(names), biases, tuple(notes))


def _component(name: str) -> str:
    return name.partition(".")[0]


def _layers(model: BaseWeights) -> set[str]:
    """The layers that an adapter can change."""
    architecture = ARCHITECTURES[model.architecture or ""]
    return {name for name in model.names if not name.endswith(_EMBEDDINGS) and is_module_of(architecture, name)}


def _asked(models: Sequence[BaseWeights], layers: Sequence[set[str]], components: Sequence[str] | None) -> set[str]:
    known = [{_component(name) for name in own} for own in layers]
    for name in components or ():
        for model, own in zip(models, known):
            if name not in own:
                raise OptionError(
                    f"components: {model.title} has no layers of {name!r}; {did_you_mean(name, list(own))}"
                )
    return set(components) if components else set.union(*known)


def _one_sided(tuned: BaseWeights, base: BaseWeights, own: set[str], others: set[str]) -> list[str]:
    """What is said of layers that one of the two has alone; raises where they are some of a denoiser both have."""
    notes = []
    for model, here, there in ((tuned, own, others), (base, others, own)):
        found: dict[str, list[str]] = {}
        for name in sorted(here - there):
            found.setdefault(_component(name), []).append(name)
        for component, names in found.items():
            whole = component not in {_component(name) for name in there}
            if component in DENOISERS and not whole:
                raise LayerError(
                    f"{model.title} has {counted(len(names), 'layer')} of the {component} that the other model has not,"
                    f" {names[0]} the first; expected a model and the one that it was tuned from"
                )
            what = f"all of {component}" if whole else f"{counted(len(names), 'layer')} ({names[0]}, ...)"
            notes.append(f"not compared, in {model.title} alone: {what}")
    return notes


def _rest(model: BaseWeights, layers: set[str], components: set[str] | None) -> set[str]:
    """Names of the tensors that are no layers' weights or biases, of these components."""
    no_layers = (f"{name}.{leaf}" for name in model.names if name not in layers for leaf in ("weight", "bias"))
    names = {*model.others, *(name for name in no_layers if model.has(name))}
    return {name for name in names if components is None or _component(name) in components}


def _beside(
    tuned: BaseWeights, base: BaseWeights, own: set[str], others: set[str], advance: Callable[[], object]
) -> list[str]:
    """What is said of tensors that are no layers', of which these are the names."""
    notes = []
    different: dict[str, dict[str, float]] = {}
    for name in sorted(own & others):
        if not _alike(tuned, base, name):
            different.setdefault(_component(name), {})[name] = _distance(tuned, base, name)
        advance()
    for component, norms in different.items():
        norm = sum(value**2 for value in norms.values()) ** 0.5
        notes.append(
            f"left out, as no layer of an adapter holds them: {counted(len(norms), 'tensor')} of {component} that "
            f"differ ({next(iter(norms))} the first), by {norm:.3g} in norm"
        )
    for model, alone in ((tuned, own - others), (base, others - own)):
        if alone:
            notes.append(
                f"not compared, in {model.title} alone or under other names there: {counted(len(alone), 'tensor')} "
                f"beside the layers ({min(alone)}, ...)"
            )
    return notes


def _bias(tuned: BaseWeights, base: BaseWeights, name: str) -> dict[str, Tensor]:
    """The difference of a layer's bias, if there is one; a bias that one has alone is a difference from zero."""
    biases = [model.bias(name) for model in (tuned, base)]
    given = [bias for bias in biases if bias is not None]
    if not given or (len(given) == 2 and _alike(tuned, base, f"{name}.bias")):
        return {}
    new, old = (torch.zeros_like(given[0]) if bias is None else bias for bias in biases)
    change = new - old
    if not bool(change.isfinite().all()):
        raise LayerError(f"layer {name}: the difference of {tuned.title} and {base.title} in its bias is not finite")
    return {name + BIAS_SUFFIX: change} if bool(change.any()) else {}


def _alike(tuned: BaseWeights, base: BaseWeights, tensor: str) -> bool:
    places = [model.place(tensor) for model in (tuned, base)]
    if places[0] and places[1] and places[0][1:] == places[1][1:] and places[0][0].samefile(places[1][0]):
        return True
    new, old = (_comparable(model.stored(tensor)) for model in (tuned, base))
    if new.numel() != old.numel():
        return False
    old = old.reshape(new.shape)
    if new.dtype == old.dtype:
        return torch.equal(new, old)
    return torch.equal(new.to(old.dtype), old) or torch.equal(new, old.to(new.dtype))


def _comparable(tensor: Tensor) -> Tensor:
    """As it is; float8, which nothing compares, as float32."""
    return tensor.float() if tensor.is_floating_point() and tensor.element_size() == 1 else tensor


def _distance(tuned: BaseWeights, base: BaseWeights, tensor: str) -> float:
    """The norm of a difference; that of the tuned model's tensor where the other has another shape."""
    new, old = (model.stored(tensor).float() for model in (tuned, base))
    change = new - old if new.shape == old.shape else new
    return float(torch.linalg.vector_norm(change, dtype=torch.float64))
