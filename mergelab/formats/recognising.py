"""Which base model a file is for, decided on the whole file before a name is changed or a module split.

The file is read by the names of every architecture; those that know the most of its modules stay, and their rules
decide (see `Architecture`). Structure proves, then the header, then nothing, unless the user says.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import islice
from statistics import median

from mergelab.checks import did_you_mean, short_repr
from mergelab.errors import ArchitectureError, LayerError, OptionError
from mergelab.formats.architectures.architecture import Architecture
from mergelab.formats.architectures.evidence import WITNESSES, Evidence, Shape
from mergelab.formats.architectures.published import is_published
from mergelab.formats.architectures.registry import ARCHITECTURES
from mergelab.formats.names import Located, is_module_of, locate

# How many modules of a file are looked at to see which architectures are worth a look at all of them.
_SAMPLE = 24
# Most layers of a published model have more inputs or outputs.
_LEAST = 512


@dataclass(frozen=True, eq=False)
class _Candidate:
    """A file by the names of one architecture."""

    architecture: Architecture
    located: Mapping[str, Located]
    shapes: Mapping[str, Shape]
    metadata: Mapping[str, str]

    @cached_property
    def known(self) -> int:
        """How many modules of the file the architecture has."""
        return sum(self._knows(where) for where in self.located.values())

    def first_unknown(self) -> str:
        return next(module for module, where in self.located.items() if not self._knows(where))

    def _knows(self, where: Located) -> bool:
        if where.original:
            naming = self.architecture.naming_of(where.component)
            return naming is not None and naming.has(where.path)
        return where.known and is_module_of(self.architecture, f"{where.component}.{where.path}")

    @cached_property
    def evidence(self) -> Evidence | None:
        """What the rules are asked with; None where a module does not hold what it should."""
        canonical: dict[str, Shape] = {}
        try:
            for module, where in self.located.items():
                if shape := self.shapes[module]:
                    canonical |= _canonical(where, shape)
        except LayerError:
            return None
        return Evidence.of(canonical, self.metadata)

    @cached_property
    def published(self) -> bool | None:
        """Whether the denoiser's layers have the shapes of the published model; None where these are not known."""
        layers = self.evidence.modules(self.architecture.denoiser) if self.evidence else {}
        inside = (self.architecture.input_layer or "").partition(".")[2]
        return is_published(self.architecture.id, layers, inside) if layers else None

    @cached_property
    def said(self) -> bool:
        """Whether the header says so."""
        return self.evidence is not None and self.evidence.says(self.architecture.header)

    @cached_property
    def fits(self) -> bool:
        """Whether nothing speaks against it: a size that is not published does, unless the header says what it is.

        Nothing speaks against a miniature, which may be any model's.
        """
        if self.evidence is None:
            return False
        if self.evidence.denoiser is None and self.said:
            return True
        is_small = median([max(shape[:2]) for shape in self.shapes.values() if shape] or [0]) < _LEAST
        sized = is_small or self.said or self.architecture.any_size or self.published is not False
        return sized and self.architecture.fits(self.evidence)

    @cached_property
    def proven(self) -> bool:
        """Whether a rule of the architecture proves it."""
        return self.evidence is not None and self.fits and self.architecture.proves(self.evidence)

    @property
    def suggested(self) -> bool:
        """Whether it is likely: of a file that the architecture knows wholly."""
        return self.evidence is not None and self.fits and self.whole and self.architecture.suggests(self.evidence)

    @property
    def whole(self) -> bool:
        """Whether it knows every module of the file."""
        return self.known == len(self.located)


@dataclass(frozen=True)
class Recognised:
    """How a file is to be read.

    Attributes:
        architecture: the base model's id; None where it cannot be told.
        located: its modules.
        names: the architecture by whose names it was read; None: they stand as they are in the file.
        notes: what of it a user should know.
    """

    architecture: str | None
    located: Mapping[str, Located]
    names: Architecture | None
    notes: tuple[str, ...] = ()


def check_architecture(id: str) -> Architecture:
    """The architecture of an id, or raise `OptionError`."""
    if not isinstance(id, str) or id not in ARCHITECTURES:
        raise OptionError(
            f"architecture={short_repr(id)}: there is no such base model; {did_you_mean(str(id), list(ARCHITECTURES))}"
        )
    return ARCHITECTURES[id]


def recognise(
    shapes: Mapping[str, Shape],
    metadata: Mapping[str, str],
    architecture: str | None = None,
    component: str | None = None,
) -> Recognised:
    """Decide for which base model a file is.

    Args:
        shapes: a module's name in the file -> shape of the weight that it changes, `(out, in[, kh, kw])`; () where
            that cannot be told.
        metadata: the header's strings.
        architecture: where the user says it; the file is held against it.
        component: of names that do not say.

    Raises:
        OptionError: there is no such architecture.
        ArchitectureError: the file's modules are not those of the architecture that the user names.
    """
    if architecture is not None:
        asked = check_architecture(architecture)
        return _as_told(_candidate(asked, shapes, {"modelspec.architecture": asked.modelspec}, component))
    witnesses = tuple((key, metadata[key]) for key in WITNESSES if key in metadata)
    return _found(tuple(shapes.items()), witnesses, component)


@lru_cache(maxsize=8)  # files of one trainer have the same modules
def _found(
    modules: tuple[tuple[str, Shape], ...], witnesses: tuple[tuple[str, str], ...], component: str | None
) -> Recognised:
    """What `recognise` returns where the user says nothing."""
    shapes, metadata = dict(modules), dict(witnesses)
    best = _best(shapes, metadata, component)
    told, said = _told(best), _declared(metadata)
    if chosen := told or _suggested(best):
        notes = [] if told else list(_other_notes(chosen, best))
        if said and not chosen.said:
            notes.append(f"the header names {said}, the layers are those of {chosen.architecture.title}")
        return Recognised(chosen.architecture.id, chosen.located, chosen.architecture, tuple(notes))
    # Where no module holds what it should, the split says what is wrong.
    possible = [candidate for candidate in best if candidate.fits or candidate.evidence is None]
    alike = len({tuple(where.reading for where in candidate.located.values()) for candidate in possible}) == 1
    first = possible[0] if alike else None
    located = first.located if first else locate(shapes, None, component)
    return Recognised(None, located, first.architecture if first else None, tuple(_open_notes(possible, said)))


def detect(shapes: Mapping[str, Shape], metadata: Mapping[str, str]) -> str | None:
    """The id of the architecture that layers belong to; None where it cannot be told.

    Args:
        shapes: layer name -> shape of the weight, `(out, in[, kh, kw])`.
        metadata: the header's strings.

    Example:
        >>> detect({"unet.mid_block.attentions.0.transformer_blocks.0.attn2.to_k": (1280, 2048)}, {})
        'sdxl'
    """
    return recognise(shapes, metadata).architecture


def fitting(shapes: Mapping[str, Shape]) -> list[Architecture]:
    """The architectures that layers may belong to, by their names and shapes alone.

    Example:
        >>> [known.id for known in fitting({"unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_k": (640, 640)})]
        ['sd15', 'sd2', 'sdxl']
    """
    return [candidate.architecture for candidate in _best(shapes, {}, None) if candidate.fits]


def _candidate(
    architecture: Architecture, shapes: Mapping[str, Shape], metadata: Mapping[str, str], component: str | None
) -> _Candidate:
    return _Candidate(architecture, locate(shapes, architecture, component), shapes, metadata)


def _best(shapes: Mapping[str, Shape], metadata: Mapping[str, str], component: str | None) -> list[_Candidate]:
    """The readings that know the most of the file's modules, and at least half of them."""
    sample = dict(islice(shapes.items(), 0, None, max(1, len(shapes) // _SAMPLE)))
    looks = [_candidate(architecture, sample, metadata, component) for architecture in ARCHITECTURES.values()]
    least = max(1, max((look.known for look in looks), default=0) / 2)
    worth = [_candidate(look.architecture, shapes, metadata, component) for look in looks if look.known >= least]
    most = max((candidate.known for candidate in worth), default=0)
    best = [candidate for candidate in worth if candidate.known == most and 2 * most >= len(shapes) > 0]
    return [candidate for candidate in best if candidate.evidence is not None] or best


def _told(best: list[_Candidate]) -> _Candidate | None:
    """The one reading that is proven, by a rule or by the shapes that it alone has, or else declared."""
    proven = [candidate for candidate in best if candidate.proven]
    alone = [] if proven else [c for c in best if c.published and c.fits and c.whole]
    declared = [candidate for candidate in proven or best if candidate.said and candidate.fits]
    return next((some[0] for some in (proven, alone, declared) if len(some) == 1), None)


def _suggested(best: list[_Candidate]) -> _Candidate | None:
    """The one reading that is likely, where none is proven."""
    likely = [] if any(candidate.proven for candidate in best) else [c for c in best if c.suggested]
    return likely[0] if len(likely) == 1 else None


def _other_notes(chosen: _Candidate, best: list[_Candidate]) -> Iterator[str]:
    """That a likely reading is not the only one that the layers allow, where the header is silent."""
    others = [c.architecture for c in best if c is not chosen and c.fits and c.published and c.whole]
    if others and chosen.published:
        titles = " and ".join(dict.fromkeys(other.title for other in others))
        yield (
            f"taken for {chosen.architecture.title}: {titles} may have such layers, too; if it is one, say "
            f"architecture={others[0].id!r} (on the command line --architecture)"
        )


def _as_told(candidate: _Candidate) -> Recognised:
    """The reading that the user asks for, unless the file speaks against it."""
    architecture = candidate.architecture
    if 2 * candidate.known < len(candidate.shapes):
        raise ArchitectureError(
            f"architecture={architecture.id!r}: {len(candidate.shapes) - candidate.known} of {len(candidate.shapes)} "
            f"modules are none of {architecture.title}'s ({candidate.first_unknown()} the first)"
        )
    if candidate.evidence is not None and not candidate.fits:
        raise ArchitectureError(
            f"architecture={architecture.id!r}: the layers are named as {architecture.title}'s, and their number or "
            "their shapes are another model's"
        )
    return Recognised(architecture.id, candidate.located, architecture)


def _open_notes(possible: list[_Candidate], said: str) -> Iterator[str]:
    titles = list(dict.fromkeys(candidate.architecture.title for candidate in possible))
    denoisers = any(where.component in ("unet", "transformer") for c in possible[:1] for where in c.located.values())
    if said:
        yield f"the header names {said}, which the layers do not bear out"
    if len(titles) > 1 and denoisers:
        yield (
            f"the layers may be those of {', '.join(titles[:-1])} or {titles[-1]}, and nothing in the file tells: say "
            "architecture= (on the command line --architecture) where it matters"
        )


def _declared(metadata: Mapping[str, str]) -> str:
    """The titles of the base models that the header names."""
    evidence = Evidence.of({}, metadata)
    return " and ".join(dict.fromkeys(a.title for a in ARCHITECTURES.values() if evidence.says(a.header)))


def _canonical(where: Located, shape: Shape) -> dict[str, Shape]:
    """The shapes of diffusers' modules that a module is or holds."""
    if where.original is None:
        return {f"{where.component}.{where.path}": shape}
    sizes = where.original.sizes(*shape[:2])
    return {f"{where.component}.{part}": (n, *shape[1:]) for part, n in zip(where.original.parts, sizes)}
