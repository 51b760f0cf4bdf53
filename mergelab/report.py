"""What a merge or a resize kept and what it lost, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from mergelab.tables import counted, text_as_html

if TYPE_CHECKING:
    import pandas

# An input whose squared norm is this share of another's, or less: its projection is the rounding of float32.
NEGLIGIBLE = 1e-12
# The square of what float32 holds no ordinary numbers below.
VANISHED = 1e-74

# How most files are read: worth a word where one is looked at, not in everything that is made from them.
USUAL_ALPHA = "alpha = rank, as everywhere"


def carried(notes: Iterable[str]) -> tuple[str, ...]:
    """Of the notes on how a file was read those that concern what is made from it, too."""
    return tuple(note for note in notes if not note.endswith(USUAL_ALPHA))


@dataclass(frozen=True)
class LayerReport:
    """One layer of a result.

    Attributes:
        name: canonical name.
        rank: rank of the stored factors; 0 where the layer was left out.
        energy: squared Frobenius norm of the merge before truncation.
        kept: squared Frobenius norm that the stored factors hold.
        projections: per input `<merged, w_i delta_i>`, None where the input does not have the layer.
        norms: per input `||w_i delta_i||^2`, None likewise.
        note: what a reader should know: a capped rank, a layer left out.
    """

    name: str
    rank: int
    energy: float
    kept: float
    projections: tuple[float | None, ...] = ()
    norms: tuple[float | None, ...] = ()
    note: str = ""

    @property
    def retained_energy(self) -> float:
        """Share of the untruncated merge's energy that is stored, in [0, 1]."""
        return _share(self.kept, self.energy)

    @property
    def relative_error(self) -> float:
        """`||merge - stored|| / ||merge||`, in [0, 1]."""
        return math.sqrt(max(0.0, 1.0 - self.retained_energy))

    @property
    def shares(self) -> tuple[float | None, ...]:
        """Per input `<merged, w delta> / ||w delta||^2`, the projection of the merge on the input's own change.

        1 means wholly present, 0 gone, below 0 turned around; above 1 where other inputs push the same way. None where
        the input does not have the layer, or is next to nothing beside another.
        """
        least = _least(self.norms)
        return tuple(p / n if p is not None and n and n > least else None for p, n in zip(self.projections, self.norms))


@dataclass(frozen=True, repr=False)
class Report:
    """What became of every layer. `print(report)` shows the totals, `to_frame()` the layers.

    Attributes:
        inputs: names of the inputs, in the order of the shares.
        layers: one row per layer.
        notes: what concerns the adapter as a whole: tensors that were not merged, assumptions.

    Example:
        >>> report = Report(("style",), (LayerReport("unet.conv_in", 4, 25.0, 16.0, (20.0,), (25.0,)),))
        >>> report.retained_energy, report.relative_error, report.shares
        (0.64, 0.6, {'style': 0.8})
        >>> print(report)
        1 layer, ranks 4 to 4 (sum 4); retained energy 64.00%, relative error 60.00% from truncation
          share of style still present: 80.0%
    """

    inputs: tuple[str, ...] = ()
    layers: tuple[LayerReport, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def retained_energy(self) -> float:
        """Share of the energy of the untruncated merge that is stored, over all layers."""
        return _share(sum(row.kept for row in self.layers), sum(row.energy for row in self.layers))

    @property
    def relative_error(self) -> float:
        """Relative Frobenius error against the untruncated merge, over all layers."""
        return math.sqrt(max(0.0, 1.0 - self.retained_energy))

    @property
    def shares(self) -> dict[str, float]:
        """Share of each input still present, over all layers; those at weight 0 and the negligible have none."""
        absent = {name for name, norm in self._norms.items() if norm is None}
        totals = {}
        for i, name in enumerate(self.inputs):
            if name not in absent and name not in self.negligible:
                projections = [row.projections[i] for row in self.layers if row.projections]
                totals[name] = sum(p for p in projections if p is not None) / (self._norms[name] or 1.0)
        return totals

    @property
    def negligible(self) -> tuple[str, ...]:
        """Inputs whose change is less than a millionth of another's, or nothing: a share of them would be rounding."""
        least = _least(self._norms.values())
        return tuple(name for name, norm in self._norms.items() if norm is not None and norm <= least)

    @property
    def _norms(self) -> dict[str, float | None]:
        """Squared norm of each input, over all layers; None for one that has no part in any."""
        own = {name: [row.norms[i] for row in self.layers if row.norms] for i, name in enumerate(self.inputs)}
        found = {name: [norm for norm in norms if norm is not None] for name, norms in own.items()}
        return {name: sum(norms) if norms else None for name, norms in found.items()}

    def to_frame(self) -> pandas.DataFrame:
        """One row per layer.

        Columns: `layer`, `rank`, `energy`, `retained_energy`, `relative_error`, `share:<name>` for each input (none
        after a resize), `note`.

        Example:
            >>> report = Report(("style",), (LayerReport("unet.conv_in", 4, 25.0, 16.0, (20.0,), (25.0,)),))
            >>> list(report.to_frame())
            ['layer', 'rank', 'energy', 'retained_energy', 'relative_error', 'share:style', 'note']
        """
        import pandas

        return pandas.DataFrame(
            [
                {
                    "layer": row.name,
                    "rank": row.rank,
                    "energy": row.energy,
                    "retained_energy": row.retained_energy,
                    "relative_error": row.relative_error,
                    **{f"share:{name}": share for name, share in zip(self.inputs, row.shares)},
                    "note": row.note,
                }
                for row in self.layers
            ]
        )

    def lines(self) -> list[str]:
        """The totals in words."""
        lines = []
        if self.layers:
            ranks = [row.rank for row in self.layers]
            kept = (
                f"retained energy {self.retained_energy:.2%}, relative error {self.relative_error:.2%} from truncation"
                if any(row.energy > 0 for row in self.layers)
                else "nothing but zeros or rounding is in it"
            )
            of = counted(len(ranks), "layer")
            lines.append(f"{of}, ranks {min(ranks)} to {max(ranks)} (sum {sum(ranks)}); {kept}")
            lines += [f"  share of {name} still present: {_percent(share)}" for name, share in self.shares.items()]
            lines += [f"  {name}: negligible beside the others, or zero: no share is given" for name in self.negligible]
            notes: dict[str, list[str]] = {}
            for row in self.layers:
                if row.note:
                    notes.setdefault(row.note, []).append(row.name)
            lines += [f"  in {_of(len(names), len(ranks))}: {note} ({_some(names)})" for note, names in notes.items()]
        return lines + [f"  note: {note}" for note in self.notes]

    def __str__(self) -> str:
        return "\n".join(self.lines()) or "nothing to report"

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return text_as_html(str(self))


def _least(norms: Iterable[float | None]) -> float:
    """The squared norm up to which an input is negligible."""
    return max(VANISHED, NEGLIGIBLE * max((norm for norm in norms if norm), default=0.0))


def _of(number: int, all_of_them: int) -> str:
    if all_of_them == 1:
        return "its layer"
    return (
        f"all {counted(number, 'layer')}" if number == all_of_them else f"{number} of {counted(all_of_them, 'layer')}"
    )


def _percent(share: float) -> str:
    return f"{round(share, 3) + 0.0:.1%}"  # no "-0.0%"


def _share(part: float, whole: float) -> float:
    return min(1.0, part / whole) if whole > 0 else 1.0


def _some(names: list[str]) -> str:
    return ", ".join(names[:2]) + (", ..." if len(names) > 2 else "")
