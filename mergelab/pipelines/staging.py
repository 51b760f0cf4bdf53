"""One set of adapters after another in one pipeline, each drawn as fast as it can be, and none left at the end."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import TracebackType

from mergelab.adapter import Adapter
from mergelab.devices import free_bytes
from mergelab.errors import LayerError, OptionError
from mergelab.pipelines.adapters import models_of, place_of
from mergelab.pipelines.applying import apply, check_offloading, remove
from mergelab.pipelines.combinations.combination import Combination
from mergelab.pipelines.encoding import Encodings
from mergelab.pipelines.fusing import Fused, fuse
from mergelab.pipelines.opening import Pipeline, denoiser, without_bars
from mergelab.pipelines.places import why_not
from mergelab.tables import counted


class Stage:
    """A pipeline between the sets of adapters that are drawn with it, in a `with` statement.

    Adapters that add up are fused into the weights and taken back bit for bit; those that a rule combines are active
    unmerged. Prompts are encoded once for all sets that leave the text encoders alone. The pipeline shows no bars.

    Args:
        pipeline: without adapters.
        layers: canonical names of all that will be changed.
        fused: False keeps all adapters unmerged; None fuses where the weights can be changed.

    Attributes:
        pipeline: the one given.
        fused: what was chosen.
        note: why, where the weights cannot be changed and nothing was asked.
        unmerged: whether layers of PEFT are in the pipeline now.

    Raises:
        OptionError: fusing was asked, and the weights cannot be changed; layers are offloaded in groups.
    """

    def __init__(self, pipeline: Pipeline, layers: Iterable[str], *, fused: bool | None = None) -> None:
        self.pipeline, self._encodings = pipeline, Encodings(pipeline)
        self._fusing: Fused | None = None
        self.unmerged = False
        with at_home(pipeline):
            try:
                check_offloading(pipeline)
            except OptionError as error:
                said = str(error).partition(";")[0]
                raise OptionError(
                    f"{said}, and adapters cannot come and go there; hand the pipeline in without that "
                    "(enable_model_cpu_offload() is fine)"
                ) from None
            reason = None if fused is False else why_not(pipeline, layers)
        if reason and fused:
            raise reason
        self.fused = fused is not False and not reason
        self.note = f"adapters are drawn unmerged, which takes longer: {reason}" if reason else None

    def show(self, adapters: Mapping[str, Adapter], key: str, combination: Combination | None = None) -> list[str]:
        """Makes these adapters, and no others, act at strength 1; none of them: the base model again.

        Args:
            adapters: name -> adapter.
            key: tells this set from others.
            combination: what combines them while an image is made; None adds them.

        Returns:
            What the pipeline does not load, in words.

        Raises:
            LayerError: it has none of an adapter's layers, or one of another shape.
        """
        self.clear()
        fitting = {name: _fitting(self.pipeline, name, adapter) for name, adapter in adapters.items()}
        acting = [a for a, _ in fitting.values() if combination or _adds(a)]
        if acting:
            self._encodings.switch(key if any(_changes_text(adapter) for adapter in acting) else "")
            with at_home(self.pipeline):
                if self.fused and combination is None:
                    self._fusing = fuse(self.pipeline, acting, keep=self._room(), progress=False)
                else:
                    apply(self.pipeline, acting)
                    self.unmerged = True
                if combination:
                    combination.attach(self.pipeline)
        return [note for _, notes in fitting.values() for note in notes]

    def clear(self) -> None:
        """The base model again."""
        self._encodings.switch("")
        if self._fusing is None and not self.unmerged:
            return
        with at_home(self.pipeline):
            if self._fusing:
                self._fusing.unfuse(force=True)  # also what somebody changed in between, who is not to find it here
            remove(self.pipeline)
        self._fusing, self.unmerged = None, False

    def _room(self) -> str:
        """Where the originals of changed weights are kept: beside them, unless a GPU has no room for all."""
        model = denoiser(self.pipeline)
        if (device := next(model.parameters()).device).type != "cuda":
            return "device"
        size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
        return "device" if free_bytes(device) > 1.5 * size else "cpu"

    def __enter__(self) -> Stage:
        with ExitStack() as entered:
            entered.enter_context(without_bars(self.pipeline))
            entered.enter_context(self._encodings)
            self._entered = entered.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.clear()
        finally:
            self._entered.__exit__(kind, error, trace)


@contextmanager
def at_home(pipeline: Pipeline) -> Iterator[None]:
    """With every weight in its module: layers that are offloaded one by one come home, and go out again after it."""
    models = models_of(pipeline).values()
    device = getattr(pipeline, "_offload_device", None)
    if device is None or not any(parameter.is_meta for model in models for parameter in model.parameters()):
        yield
        return
    try:
        pipeline.remove_all_hooks()
        yield
    finally:
        pipeline.enable_sequential_cpu_offload(device=device)


def _fitting(pipeline: Pipeline, name: str, adapter: Adapter) -> tuple[Adapter, list[str]]:
    """Those layers of an adapter that the pipeline has; and what is left out, in words."""
    notes = []
    if adapter.extras:
        notes.append(f"{name}: {counted(len(adapter.extras), 'tensor')} beside the layers: not loaded")
    models = models_of(pipeline)
    missing = [layer for layer in adapter.layers if place_of(models, layer) is None]
    if len(missing) == len(adapter.layers):
        raise LayerError(f"{name}: {type(pipeline).__name__} has none of its layers, {missing[0]} the first")
    if missing:
        notes.append(
            f"{name}: {type(pipeline).__name__} has no module for {len(missing)} of "
            f"{counted(len(adapter.layers), 'layer')}, {missing[0]} the first"
        )
    absent = set(missing)
    layers = {layer: change for layer, change in adapter.layers.items() if layer not in absent}
    return replace(adapter, layers=layers, extras={}), notes


def _adds(adapter: Adapter) -> bool:
    """Whether there is anything to add: a weight of zero is none. (Its norm would take seconds at the size of FLUX.)"""
    return any(bool(b.any() and a.any()) for b, a in map(adapter.matrices, adapter.layers))


def _changes_text(adapter: Adapter) -> bool:
    return any(not layer.startswith(("unet.", "transformer.")) for layer in adapter.layers)
