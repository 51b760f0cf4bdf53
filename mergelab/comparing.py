"""Before any merge: where adapters agree, where they overlap, and where they are in each other's way."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from mergelab.adapter import Adapter, Source
from mergelab.devices import AUTO, LAYER_BY_LAYER, Device, chosen_device
from mergelab.engine.aligning import aligned_layers, load_all, unique_names, with_one_input
from mergelab.linalg.lowrank import Factors, inner
from mergelab.linalg.span import svd
from mergelab.linalg.workspace import each_layer
from mergelab.tables import counted, text_as_html

if TYPE_CHECKING:
    import pandas

# The sign conflict needs entries of the dense change; this many evenly spaced rows of a layer are looked at.
SAMPLED_ROWS = 256
_RANK_TOLERANCE = 1e-6


@dataclass(frozen=True)
class PairRow:
    """Two adapters in one layer.

    Attributes:
        layer, first, second: what is compared.
        norm_first, norm_second: Frobenius norms of the changes.
        inner: their Frobenius inner product.
        shared_subspace: mean squared cosine of the principal angles of their column and row spaces: 0 none shared,
            1 the smaller lies within the larger.
        sign_conflict: share of `sum min(|x|, |y|)` that lies on entries of opposite sign: 0 none, 0.5 as for
            unrelated changes, 1 all; estimated on 256 rows in layers that have more.
    """

    layer: str
    first: str
    second: str
    norm_first: float
    norm_second: float
    inner: float
    shared_subspace: float
    sign_conflict: float

    @property
    def cosine(self) -> float:
        """Cosine of the angle between the changes."""
        norms = self.norm_first * self.norm_second
        return self.inner / norms if norms > 0 else 0.0


@dataclass(frozen=True, repr=False)
class Comparison:
    """How adapters relate, pair by pair: `print` shows totals and a verdict, `to_frame()` the layers, `plot()` both.

    Attributes:
        names: of the adapters.
        norms: of each whole adapter.
        rows: one per pair and layer that both have.
        shared_layers: per pair: layers that both have, and that only the first or only the second has.

    Example:
        >>> row = PairRow("unet.conv_in", "a", "b", 3.0, 4.0, 6.0, shared_subspace=0.1, sign_conflict=0.4)
        >>> comparison = Comparison(("a", "b"), (3.0, 4.0), (row,), {("a", "b"): (1, 0, 0)})
        >>> print(comparison)
        a: norm 3
        b: norm 4
        a and b: 1 layer shared, cosine +0.500, shared subspace 10.0%, sign conflict 40.0%
        a and b are nearly independent: the exact sum (cat, or svd at a sufficient rank) keeps both.
        >>> list(comparison.to_frame())[-3:]
        ['shared_subspace', 'sign_conflict', 'cosine']
    """

    names: tuple[str, ...]
    norms: tuple[float, ...]
    rows: tuple[PairRow, ...]
    shared_layers: dict[tuple[str, str], tuple[int, int, int]]

    def totals(self) -> list[dict[str, Any]]:
        """One dictionary per pair: layers, cosine, shared_subspace and sign_conflict (energy-weighted), norms."""
        totals = []
        for pair, (both, only_first, only_second) in self.shared_layers.items():
            rows = [row for row in self.rows if (row.first, row.second) == pair]
            norms = [self.norms[self.names.index(name)] for name in pair]
            energy = [row.norm_first * row.norm_second for row in rows]

            def mean(values: list[float], energy: list[float] = energy) -> float:
                return sum(v * e for v, e in zip(values, energy)) / sum(energy) if sum(energy) > 0 else 0.0

            totals.append(
                {
                    "first": pair[0],
                    "second": pair[1],
                    "layers_shared": both,
                    "layers_first_only": only_first,
                    "layers_second_only": only_second,
                    "norm_first": norms[0],
                    "norm_second": norms[1],
                    "cosine": sum(row.inner for row in rows) / math.prod(norms) if math.prod(norms) > 0 else 0.0,
                    "shared_subspace": mean([row.shared_subspace for row in rows]),
                    "sign_conflict": mean([row.sign_conflict for row in rows]),
                }
            )
        return totals

    def verdict(self) -> str:
        """What to expect of a merge, in words, a sentence or two for each pair."""
        return "\n".join(_verdict(total) for total in self.totals())

    def to_frame(self) -> pandas.DataFrame:
        """One row per pair and layer; the columns are the attributes of `PairRow`, and `cosine`."""
        import pandas

        return pandas.DataFrame([{**vars(row), "cosine": row.cosine} for row in self.rows])

    def to_dict(self) -> dict[str, Any]:
        """Totals, verdict and layers, JSON-ready."""
        layers = [{**vars(row), "cosine": row.cosine} for row in self.rows]
        return {"totals": self.totals(), "verdict": self.verdict(), "layers": layers}

    def plot(self) -> Any:
        """A matplotlib figure: cosine, shared subspace and sign conflict along the layers, a line for each pair."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(10, 6), layout="constrained")
        panels = figure.subplots(3, 1, sharex=True)
        for pair in self.shared_layers:
            rows = [row for row in self.rows if (row.first, row.second) == pair]
            for panel, measure in zip(panels, ("cosine", "shared_subspace", "sign_conflict")):
                panel.plot([getattr(row, measure) for row in rows], ".-", label=f"{pair[0]}, {pair[1]}", linewidth=0.6)
                panel.set_ylabel(measure.replace("_", " "))
        panels[0].legend()
        panels[2].axhline(0.5, color="grey", linewidth=0.8, linestyle="--")
        panels[2].set_xlabel("layer")
        return figure

    def __str__(self) -> str:
        lines = [f"{name}: norm {norm:.4g}" for name, norm in zip(self.names, self.norms)]
        for t in self.totals():
            lines.append(
                f"{t['first']} and {t['second']}: {counted(t['layers_shared'], 'layer')} shared, "
                f"cosine {t['cosine']:+.3f}, shared subspace {t['shared_subspace']:.1%}, "
                f"sign conflict {t['sign_conflict']:.1%}"
            )
        return "\n".join([*lines, self.verdict()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        return text_as_html(str(self))


def compare(
    adapters: Sequence[Adapter | Source] | Adapter | Source, *others: Adapter | Source, device: Device = AUTO
) -> Comparison:
    """Measure how adapters relate before they are merged.

    Args:
        adapters: a list of two or more, or of anything that `load` takes; or the first of them,
        others: and the rest, as in `compare(a, b)`.
        device: where to compute; "auto" is the CPU here, where a GPU, layer by layer, would be slower.

    Returns:
        A `Comparison`; all but the sign conflict is exact, from the factors.

    Raises:
        MergelabError: fewer than two adapters, or adapters for different base models; no such device.

    Example:
        >>> import torch
        >>> from mergelab import LoraLayer
        >>> a = Adapter({"unet.conv_in": LoraLayer(torch.eye(2, 3), torch.eye(4, 2))}, source="a")
        >>> round(compare([a, 2 * a]).totals()[0]["cosine"], 6)
        1.0
    """
    where = chosen_device(device, LAYER_BY_LAYER)
    found = load_all([adapters, *others] if others else adapters, least=2)  # type: ignore[list-item,arg-type]
    names = unique_names([a.name for a in found])
    found, _ = with_one_input(found, names)
    aligned_layers(found, names)
    everywhere = (name for a in found for name in a.layers)
    measured = each_layer(lambda name: _measure_layer(found, names, name, where), everywhere, where)
    rows, shared = [], {}
    for i, j in itertools.combinations(range(len(found)), 2):
        both = [name for name in found[i].layers if name in found[j].layers]
        shared[names[i], names[j]] = (len(both), len(found[i].layers) - len(both), len(found[j].layers) - len(both))
        rows += [measured[name].pairs[i, j] for name in both]
    norms = [math.sqrt(sum(measured[name].squares[i] for name in a.layers)) for i, a in enumerate(found)]
    return Comparison(tuple(names), tuple(norms), tuple(rows), shared)


class _Side(NamedTuple):
    """One adapter in one layer: its change, squared norm, and orthonormal bases of its column and row space."""

    change: Factors
    square: float
    columns: Tensor
    rows: Tensor


class _Layer(NamedTuple):
    squares: dict[int, float]
    pairs: dict[tuple[int, int], PairRow]


def _measure_layer(adapters: Sequence[Adapter], names: Sequence[str], name: str, device: torch.device) -> _Layer:
    sides = {i: _side(a.matrices(name, device)) for i, a in enumerate(adapters) if name in a.layers}
    pairs = {
        (i, j): _pair(name, names[i], names[j], sides[i], sides[j]) for i, j in itertools.combinations(sorted(sides), 2)
    }
    return _Layer({i: side.square for i, side in sides.items()}, pairs)


def _side(change: Factors) -> _Side:
    spectrum = svd(change)
    rank = int((_RANK_TOLERANCE * spectrum.S[0] < spectrum.S).sum())
    # The vectors of small singular values are only nearly orthogonal.
    columns, rows = (torch.linalg.qr(x[:, :rank]).Q for x in (spectrum.U, spectrum.V))
    return _Side(change, max(0.0, float(inner(change, change))), columns, rows)


def _pair(layer: str, first: str, second: str, x: _Side, y: _Side) -> PairRow:
    return PairRow(
        layer=layer,
        first=first,
        second=second,
        norm_first=math.sqrt(x.square),
        norm_second=math.sqrt(y.square),
        inner=float(inner(x.change, y.change)),
        shared_subspace=_shared_subspace(x, y),
        sign_conflict=_sign_conflict(x.change, y.change),
    )


def _shared_subspace(x: _Side, y: _Side) -> float:
    smaller = min(x.columns.shape[1], y.columns.shape[1])
    if smaller == 0:
        return 0.0
    columns, rows = (x.columns.T @ y.columns).square().sum(), (x.rows.T @ y.rows).square().sum()
    return float(columns + rows) / (2 * smaller)


def _sign_conflict(x: Factors, y: Factors) -> float:
    out = x.B.shape[0]
    rows = torch.linspace(0, out - 1, min(out, SAMPLED_ROWS)).round().long().to(x.B.device)
    dense_x, dense_y = x.B[rows] @ x.A, y.B[rows] @ y.A
    common = torch.minimum(dense_x.abs(), dense_y.abs())
    total = float(common.sum())
    return float(common[dense_x * dense_y < 0].sum()) / total if total > 0 else 0.0


def _verdict(total: dict[str, Any]) -> str:
    first, second, cosine = total["first"], total["second"], total["cosine"]
    pair = f"{first} and {second}"
    if not total["layers_shared"]:
        return f"{pair} change different layers: any method keeps both whole; cat is exact."
    if cosine > 0.5:
        words = f"{pair} push the same way: their sum overshoots what they share; lower the weights, or average (ties)."
    elif cosine < -0.2:
        words = f"{pair} push against each other: a sum cancels; ties decides entry by entry instead."
    elif total["shared_subspace"] > 0.3:
        words = f"{pair} are nearly orthogonal, but use the same directions: compare svd with ties in core space."
    else:
        words = f"{pair} are nearly independent: the exact sum (cat, or svd at a sufficient rank) keeps both."
    norms = sorted((total["norm_first"], total["norm_second"]))
    if norms[0] > 0 and norms[1] / norms[0] > 3:
        louder = first if total["norm_first"] == norms[1] else second
        words += (
            f" {louder} is {norms[1] / norms[0]:.1f} times as strong, and will dominate what is trimmed or truncated."
        )
    return words
