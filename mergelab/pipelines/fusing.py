"""Adapters added to the weights of a loaded pipeline, and taken back bit for bit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from mergelab.engine.changes import Loras, Weights, collect
from mergelab.pipelines.keeping import keeper_of
from mergelab.pipelines.originals import (
    changed_places,
    check_untied,
    check_untouched,
    is_on,
    put_on,
    restore,
    roll_back,
    take_off,
)
from mergelab.pipelines.places import Place, check_reachable, find_places, target_models
from mergelab.tables import counted


class Fused:
    """Adapters that are part of a pipeline's weights, until `unfuse`.

    Attributes:
        adapters: their names.
        tensors: canonical names of the tensors that are changed.
        active: whether they are still there.

    Example:
        >>> from mergelab import miniature
        >>> pipe = miniature.pipeline("sdxl")
        >>> fuse(pipe, ["miniature/sdxl/ghost", "miniature/sdxl/day"])
        Fused ghost, day (69 tensors of unet)
    """

    def __init__(self, target: Any, adapters: Sequence[str], places: Sequence[Place]) -> None:
        self.adapters = tuple(adapters)
        self.tensors = tuple(place.name for place in places)
        self._target, self._places = target, tuple(places)
        # What stands for this where its changes are noted: not itself, which would keep the pipeline alive.
        self._key = object()

    @property
    def active(self) -> bool:
        return any(is_on(place, self._key) for place in self._places)

    def unfuse(self, *, force: bool = False) -> None:
        """Takes the adapters back: the weights are what they would be, had these never been fused, bit for bit.

        Other fusings stay, whichever came first; after the last one the weights are the base model's. A second call
        does nothing.

        Args:
            force: also where somebody else has changed the weights since, whose changes are lost then.

        Raises:
            OptionError: the weights are offloaded layer by layer, or joined by `fuse_qkv_projections`.
            LayerError: somebody else has changed the weights since; what is left is not finite in their dtype. Nothing
                is changed in any of these cases.
        """
        places = [place for place in self._places if is_on(place, self._key)]
        if places:
            _check_takable(self._target, places, force)
        take_off(places, self._key)
        self._target, self._places = None, ()

    def __repr__(self) -> str:
        components = ", ".join(dict.fromkeys(name.partition(".")[0] for name in self.tensors))
        what = f"{', '.join(self.adapters)} ({counted(len(self.tensors), 'tensor')} of {components})"
        return f"Fused {what}" if self.active else f"Taken back: {what}"


def fuse(
    target: Any,
    loras: Loras,
    weights: Weights | None = None,
    *,
    keep: str | os.PathLike[str] = "device",
    progress: bool | None = None,
) -> Fused:
    """Add adapters to the weights of a loaded pipeline, in place, so that they cost nothing when it draws.

    A weight becomes `weight + sum of weight_i * delta_weight_i`, computed in float32 and rounded once, layer by layer
    where it lies. All is checked before anything is changed, and an interruption half way leaves no trace. Compiled
    models see the changes, but for what inductor has frozen (`torch._inductor.config.freezing`): compile such a model
    after fusing, and do not take back before `torch.compiler.reset()`.

    Args:
        target: a diffusers pipeline, or one of its models (for adapters of one component).
        loras: an adapter or several, or anything that `load` takes.
        weights: as for `merge`: one for each adapter, a number or a mapping from components or layer patterns.
        keep: where the originals of the changed weights are kept: "device" (beside them), "cpu", or a folder. What is
            kept already, for another fusing, stays where it is.
        progress: show a bar; by default on a terminal only.

    Returns:
        What is fused; `unfuse()` takes it back bit for bit, in any order with others.

    Raises:
        OptionError: the target is no pipeline, or quantised, or offloaded, or computes with joined projections; an
            adapter holds embeddings or norms.
        ArchitectureError, LayerError: an adapter for another base model; a layer has no module of its shape; somebody
            else changed what is fused already. Also, by name, where after a failure a tensor cannot be written back:
            `unfuse(pipeline)` tries again.
        OutputError: an original cannot be kept in the folder.

    Example:
        >>> import torch
        >>> from mergelab import miniature
        >>> pipe = miniature.pipeline("sdxl")
        >>> weight = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight
        >>> before = weight.detach().clone()
        >>> ghost = fuse(pipe, "miniature/sdxl/ghost", 0.8)
        >>> day = fuse(pipe, "miniature/sdxl/day")
        >>> ghost.unfuse()
        >>> day.unfuse()
        >>> torch.equal(weight, before)
        True
    """
    kept = keeper_of(keep)
    changes = collect(loras, weights)
    places = find_places(target, changes)
    check_untied(places)
    for place in places:
        check_untouched(place)
    fused = Fused(target, changes.names, list(places))
    bar = tqdm(places.items(), "fusing", unit="tensor", disable=None if progress is None else not progress)
    try:
        for place, own in bar:
            put_on(place, fused._key, own, kept)
    except BaseException:
        roll_back(places, fused._key)
        raise
    return fused


def unfuse(target: Any, *, force: bool = False) -> None:
    """Take back all that `fuse` has added to a pipeline, or to one of its models: the base model again, bit for bit.

    What fused it is not needed, and says that it is taken back. Where nothing is fused, nothing happens.

    Args:
        target: a pipeline, or one of its models.
        force: also where somebody else has changed the weights since, whose changes are lost then.

    Raises:
        OptionError: the target is no pipeline; its weights are offloaded layer by layer, or joined.
        LayerError: somebody else has changed the weights since (nothing is changed then); a tensor cannot be written
            (all others are, and a second call tries again).

    Example:
        >>> from mergelab import miniature
        >>> pipe = miniature.pipeline("sdxl")
        >>> ghost = fuse(pipe, "miniature/sdxl/ghost", 0.8)
        >>> unfuse(pipe)
        >>> ghost
        Taken back: ghost (48 tensors of unet)
    """
    places = changed_places(target_models(target).values())
    _check_takable(target, places, force)
    restore(places)


def _check_takable(target: Any, places: Sequence[Place], force: bool) -> None:
    check_reachable(target, places, force=force)
    if not force:
        for place in places:
            check_untouched(place)


@contextmanager
def fused(
    target: Any,
    loras: Loras,
    weights: Weights | None = None,
    *,
    keep: str | os.PathLike[str] = "device",
    progress: bool | None = None,
) -> Iterator[Fused]:
    """With adapters fused; taken back at the end, whatever happens. Arguments and errors are those of `fuse`.

    Example:
        >>> from mergelab import miniature
        >>> pipe = miniature.pipeline("flux")
        >>> pipe.set_progress_bar_config(disable=True)
        >>> with fused(pipe, "miniature/flux/ghost"):
        ...     image = pipe("a sks on a navy background", **miniature.settings("flux")).images[0]
    """
    active = fuse(target, loras, weights, keep=keep, progress=progress)
    try:
        yield active
    finally:
        active.unfuse()
