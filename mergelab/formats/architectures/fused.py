"""A module of the original model: what it holds is split into diffusers' modules, and joined from them, exactly."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate, pairwise

import torch
from torch import Tensor

from mergelab.errors import LayerError
from mergelab.layer import DerivedLayer, Layer, LoraLayer


@dataclass(frozen=True)
class OriginalModule:
    """A module of the original model and the diffusers modules that its rows hold.

    Attributes:
        path: of the original module.
        parts: paths of diffusers' modules, from the first row to the last.
        rest: 0: all parts have as many outputs as the module has inputs; else the last takes the rows that are left,
            usually so many times the inputs.
        swapped: its halves are (shift, scale), diffusers' (scale, shift).
        linear: whether it must be a linear layer.
        shares: the rows of the parts in proportion, where they are unequal; the first has as many as there are inputs.
    """

    path: str
    parts: tuple[str, ...]
    rest: int = 0
    swapped: bool = False
    linear: bool = False
    shares: tuple[int, ...] = ()

    def sizes(self, rows: int, columns: int) -> list[int]:
        """Rows of each part, for a weight of this shape.

        Raises:
            LayerError: the shape does not hold the parts.
        """
        if len(self.parts) == 1:
            return [rows]
        sizes = self._usual_sizes(columns)
        known = sum(sizes[:-1]) if self.rest else sum(sizes)
        if self.rest:
            sizes[-1] = rows - known
        if sum(sizes) != rows or sizes[-1] < 1:
            raise LayerError(
                f"layer {self.path}: a change of shape ({rows}, {columns}) does not hold {len(self.parts)} parts, "
                f"expected {f'more than {known}' if self.rest else known} rows"
            )
        return sizes

    def split(self, layer: Layer) -> dict[str, Layer]:
        """The layers of diffusers' modules, which share `lora_A` and take their rows of `lora_B`.

        Where `lora_B` is block-diagonal (a file that was split before it was fused), each part gets back the factors
        of its own block, and a part that is zero throughout while others are not is left out.
        """
        self._check(layer)
        if len(self.parts) == 1:
            return {self.parts[0]: self._swapped(layer)}
        if isinstance(layer, DerivedLayer):
            ends = accumulate(self.sizes(layer.shape[0], layer.shape[1]), initial=0)
            return {name: layer.of_rows(slice(*rows)) for name, rows in zip(self.parts, pairwise(ends))}
        ups = torch.split(layer.lora_B, self.sizes(*layer.shape))
        used = [_used_columns(up) for up in ups] if _is_sparse(ups) else None
        if used is None:
            return {name: LoraLayer(layer.lora_A, up, layer.scaling) for name, up in zip(self.parts, ups)}
        return {
            name: LoraLayer(layer.lora_A[columns], up[:, columns], layer.scaling)
            for name, up, columns in zip(self.parts, ups, used)
            if len(columns)
        }

    def split_rows(self, vector: Tensor, columns: int | None) -> dict[str, Tensor]:
        """A bias as the biases of diffusers' modules.

        `columns` are the inputs of the weight beside it; a bias that stands alone has the usual proportions.
        """
        if len(self.parts) == 1:
            return {self.parts[0]: self._swapped_rows(vector)}
        if columns is None:
            columns = len(vector) * self._shares[0] // sum(self._shares)
        return dict(zip(self.parts, torch.split(vector, self.sizes(len(vector), columns))))

    def join(self, layers: Mapping[int, Layer], rest: int | None = None) -> Layer:
        """The layer of this module from those of its parts, by their number, exactly.

        `lora_A` is shared where all parts have the same; otherwise the factors stand side by side, `lora_B`
        block-diagonal, and the rank is the sum of the parts' ranks. A part that is missing is zero; `rest` is the
        size of the last part where something else tells it.
        """
        given = list(layers.values())
        self._check(given[0])
        if len(self.parts) == 1:
            return self._swapped(given[0])
        sizes = self._sizes_of(layers, rest)
        first = given[0].lora_A
        shared = all(x.lora_A.shape == first.shape and torch.equal(x.lora_A, first) for x in given[1:])
        scaling = given[0].scaling if len({x.scaling for x in given}) == 1 else 1.0
        ups = {i: x.lora_B if x.scaling == scaling else x.lora_B.float() * x.scaling for i, x in layers.items()}
        some = next(iter(ups.values()))
        if shared:
            rows = [ups[i] if i in ups else some.new_zeros(n, first.shape[0]) for i, n in enumerate(sizes)]
            return LoraLayer(first, torch.cat(rows), scaling)
        ranks = [layers[i].rank if i in layers else 0 for i in range(len(sizes))]
        blocks = []
        for i, n in enumerate(sizes):
            before, after = sum(ranks[:i]), sum(ranks[i + 1 :])
            up = ups[i] if i in ups else some.new_zeros(n, 0)
            blocks.append(torch.nn.functional.pad(up, (before, after)))
        downs = [layers[i].lora_A for i in range(len(sizes)) if i in layers]
        return LoraLayer(torch.cat(downs), torch.cat(blocks), scaling)

    def join_rows(self, vectors: Mapping[int, Tensor], shape: tuple[int, ...] | None) -> Tensor:
        """The bias of this module from those of its parts; a part that is missing is zero.

        `shape` is that of the module's weight, where it is known.
        """
        if len(self.parts) == 1:
            return self._swapped_rows(vectors[0])
        last = len(self.parts) - 1
        if shape is not None:
            sizes = self.sizes(shape[0], shape[1])
        elif not self.rest:
            index, some = next(iter(vectors.items()))
            sizes = self._usual_sizes(len(some) * self._shares[0] // self._shares[index])
        else:
            width = next((len(v) for i, v in vectors.items() if i < last), 0) or len(vectors[last]) // self.rest
            sizes = [width] * last + [len(vectors[last]) if last in vectors else self.rest * width]
        some = next(iter(vectors.values()))
        return torch.cat([vectors.get(i, some.new_zeros(size)) for i, size in enumerate(sizes)])

    @property
    def _shares(self) -> tuple[int, ...]:
        """Rows of the parts in proportion, as they usually are."""
        return self.shares or (1,) * (len(self.parts) - bool(self.rest)) + (self.rest,) * bool(self.rest)

    def _usual_sizes(self, columns: int) -> list[int]:
        return [columns * share // self._shares[0] for share in self._shares]

    def _sizes_of(self, layers: Mapping[int, Layer], rest: int | None) -> list[int]:
        last, columns = len(self.parts) - 1, next(iter(layers.values())).lora_A.shape[1]
        sizes = self._usual_sizes(columns)
        if self.rest:
            sizes[last] = layers[last].lora_B.shape[0] if last in layers else rest or self.rest * columns
        for index, layer in layers.items():
            if layer.shape != (sizes[index], columns):
                raise LayerError(
                    f"layer {self.path}: its parts do not fit together: expected part {index} to have shape "
                    f"{(sizes[index], columns)}, found {layer.shape}; the original model has them in one module, write "
                    "format 'diffusers' or 'peft'"
                )
        return sizes

    def _check(self, layer: Layer) -> None:
        if self.linear and len(layer.shape) != 2:
            raise LayerError(f"layer {self.path}: expected a linear layer, found shape {layer.shape}")

    def _swapped(self, layer: Layer) -> Layer:
        if not self.swapped:
            return layer
        if isinstance(layer, DerivedLayer):
            half = len(self._swapped_rows(torch.empty(layer.shape[0]))) // 2
            return layer.of_rows(slice(half, 2 * half), slice(0, half))
        return LoraLayer(layer.lora_A, self._swapped_rows(layer.lora_B), layer.scaling)

    def _swapped_rows(self, rows: Tensor) -> Tensor:
        if not self.swapped:
            return rows
        if rows.shape[0] % 2:
            raise LayerError(f"layer {self.path}: expected shift and scale of one size, found {rows.shape[0]} outputs")
        return torch.roll(rows, rows.shape[0] // 2, dims=0)


def _is_sparse(ups: tuple[Tensor, ...]) -> bool:
    """Does some part use only some of the columns, or none? Looks at one row of each part first."""
    if all(bool((up[0] != 0).all()) for up in ups):
        return False
    used = [len(_used_columns(up)) for up in ups]
    return any(used) and min(used) < ups[0].shape[1]


def _used_columns(up: Tensor) -> Tensor:
    return torch.nonzero((up != 0).any(dim=0)).flatten()
