"""Adapters added to the weights of a loaded pipeline, and taken back bit for bit."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

from mergelab.engine.changes import Loras, Weights, collect
from mergelab.pipelines.originals import check_untouched, keeper_of, put_on, take_off
from mergelab.pipelines.places import Place, find_places
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

    def __init__(self, adapters: Sequence[str], places: Sequence[Place]) -> None:
        self.adapters = tuple(adapters)
        self.tensors = tuple(place.name for place in places)
        self._places = tuple(places)
        # What stands for this where its changes are noted: not itself, which would keep the pipeline alive.
        self._key = object()

    @property
    def active(self) -> bool:
        return bool(self._places)

    def unfuse(self) -> None:
        """Takes the adapters back: the weights are what they would be, had these never been fused, bit for bit.

        Other fusings stay, whichever came first; after the last one the weights are the base model's. A second call
        does nothing.

        Raises:
            LayerError: somebody else has changed the weights since; nothing is changed then.
        """
        for place in self._places:
            check_untouched(place)
        try:
            self._take_back()
        except BaseException:  # Ctrl-C, say: finish first
            self._take_back()
            raise

    def _take_back(self) -> None:
        for place in self._places:
            take_off(place, self._key)
        self._places = ()

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
    where it lies. All is checked before anything is changed, and an interruption half way leaves no trace.

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
        OptionError: the target is no pipeline, or quantised, or offloaded; an adapter holds embeddings or norms.
        ArchitectureError, LayerError: a layer has no module of its shape; somebody else changed what is fused already.
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
    for place in places:
        check_untouched(place)
    fused = Fused(changes.names, places)
    try:
        for place in tqdm(places, "fusing", unit="tensor", disable=None if progress is None else not progress):
            put_on(place, fused._key, kept)
    except BaseException:
        fused._take_back()
        raise
    return fused


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
