"""`Adapter`: what a LoRA file holds, as an element of a vector space that can be saved."""

from __future__ import annotations

import html
import math
import os
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from pathlib import Path

import torch
from torch import Tensor

from mergelab import formats
from mergelab.checks import EXPECTED_NUMBER, is_number, shown
from mergelab.errors import LayerError, OptionError, OutputError
from mergelab.formats.architectures import check_base_models
from mergelab.layer import BIAS_SUFFIX, AdapterData, LoraLayer, LoraSum, layer_of, same_weight, short_name, terms_of
from mergelab.linalg.lowrank import Spectrum, inner, svd
from mergelab.linalg.precision import full_precision
from mergelab.ranks import Rank, RankBudget, check_rank, rank_note, target_rank, truncate
from mergelab.report import LayerReport, Report

Source = str | os.PathLike[str] | Mapping[str, Tensor]


@dataclass(frozen=True, eq=False, repr=False)
class Adapter(AdapterData):
    """A LoRA adapter: layers by canonical name, and everything else its file held.

    Adapters form a vector space: `0.8 * a + 0.6 * b - c` is an adapter whose change is exactly that, at the sum of
    the ranks; nothing is computed before it is needed.

    Attributes:
        layers: canonical name `<component>.<module path>` -> layer; components are unet, transformer, text_encoder,
            text_encoder_2, or model where the architecture is unknown.
        extras: tensors that are no LoRA factors: biases, norms, textual-inversion embeddings.
        architecture: "sd15", "sd2", "sdxl", "flux" or None.
        metadata: the header's strings.
        report: what a merge or a resize kept and lost, or how a file was read.
        inputs: the files it was made from, which `save` never replaces.

    Example:
        >>> import torch
        >>> a = Adapter({"unet.conv_in": LoraLayer(torch.ones(2, 3), torch.ones(4, 2))})
        >>> (0.5 * a + a).layers["unet.conv_in"].delta_weight()[0, 0].item()
        3.0
        >>> a.ranks, (a - a).norm()
        ({'unet.conv_in': 2}, 0.0)
    """

    report: Report = field(default_factory=Report)
    inputs: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        for name in self.layers:
            if "." not in name:
                raise LayerError(f"{self.source}: layer {name!r}: expected a name such as 'unet.mid_block...'")

    @property
    def is_file(self) -> bool:
        """Whether this is a file (or a PEFT folder) as it was read, and nothing made from it."""
        return bool(self.inputs) and Path(self.source) in (self.inputs[0], *self.inputs[0].parents[:2])

    @property
    def name(self) -> str:
        """A short name, from the file's."""
        return short_name(self.source)

    @property
    def ranks(self) -> dict[str, int]:
        """Rank of every layer."""
        return {name: layer.rank for name, layer in self.layers.items()}

    # A vector space.

    def __mul__(self, factor: float) -> Adapter:
        if isinstance(factor, (bool, str, torch.Tensor)) or not hasattr(factor, "__float__"):
            return NotImplemented
        if not is_number(factor):
            raise OptionError(f"an adapter times {shown(factor)}: {EXPECTED_NUMBER}")
        layers = {name: layer.scaled(float(factor)) for name, layer in self.layers.items()}
        return replace(
            self,
            layers=layers,
            extras=_scaled_biases(self.extras, factor),
            source=f"{factor:g} * {self.name}",
            report=Report(),
        )

    __rmul__ = __mul__

    def __truediv__(self, divisor: float) -> Adapter:
        return self * (1 / divisor) if is_number(divisor) and divisor else NotImplemented

    def __neg__(self) -> Adapter:
        return self * -1.0

    def __radd__(self, other: object) -> Adapter:
        """`sum(adapters)` begins with 0."""
        return self if isinstance(other, int) and other == 0 else NotImplemented

    def __sub__(self, other: Adapter) -> Adapter:
        return self + -other if isinstance(other, Adapter) else NotImplemented

    def __add__(self, other: Adapter) -> Adapter:
        if not isinstance(other, Adapter):
            return NotImplemented
        check_base_models([self, other], [self.name, other.name])
        layers = dict(self.layers)
        for name, layer in other.layers.items():
            mine = layers.get(name)
            if mine is not None and not same_weight(mine.shape, layer.shape):
                raise LayerError(
                    f"layer {name}: {self.name} has shape {mine.shape}, {other.name} {layer.shape}: they do not add"
                )
            layers[name] = layer if mine is None else LoraSum(_same_kernel(*terms_of(mine), *terms_of(layer)))
        extras = dict(self.extras)
        for key, tensor in other.extras.items():
            if key in extras and not key.endswith(BIAS_SUFFIX):
                if not torch.equal(extras[key], tensor):
                    raise OptionError(f"{key}: {self.name} and {other.name} hold different values, which do not add")
            else:
                extras[key] = extras[key].float() + tensor.float() if key in extras else tensor
        return replace(
            self,
            layers=layers,
            extras=extras,
            architecture=self.architecture or other.architecture,
            source=f"{self.name} + {other.name}",
            inputs=(*self.inputs, *other.inputs),
            report=Report(),
            metadata={},
        )

    @full_precision()
    def inner(self, other: Adapter) -> float:
        """Frobenius inner product of the changes, summed over the layers that both have; from the factors."""
        shared = [name for name in self.layers if name in other.layers]
        return sum(inner(self.matrices(name), other.matrices(name)) for name in shared)

    def norm(self) -> float:
        """Frobenius norm of the change, over all layers; from the factors (to 1e-8 of the terms it is a sum of)."""
        return math.sqrt(max(0.0, self.inner(self)))

    def cosine(self, other: Adapter) -> float:
        """Cosine of the angle between two changes, in [-1, 1]; 0 where one of them is zero."""
        norms = self.norm() * other.norm()
        return max(-1.0, min(1.0, self.inner(other) / norms)) if norms > 0 else 0.0

    # Parts, ranks, files.

    def select(self, pattern: str) -> Adapter:
        """The layers whose names match an `fnmatch` pattern, or belong to a component; with their biases.

        Raises:
            OptionError: nothing matches.
        """

        def chosen(name: str) -> bool:
            return fnmatchcase(name, pattern) or name.startswith(f"{pattern}.")

        layers = {name: layer for name, layer in self.layers.items() if chosen(name)}
        if not layers:
            raise OptionError(
                f"{self.source}: no layer matches {pattern!r}; layers are named like {next(iter(self.layers))}"
            )
        extras = {key: tensor for key, tensor in self.extras.items() if chosen(key)}
        return replace(self, layers=layers, extras=extras, source=f"{pattern} of {self.name}")

    def without_extras(self) -> Adapter:
        """The layers alone."""
        return replace(self, extras={})

    @full_precision()
    def resize(self, rank: Rank) -> Adapter:
        """The best approximation at another rank, layer by layer; exact where the rank is not below what is there.

        Args:
            rank: as for `merge`.

        Returns:
            An adapter with a `report` of what was kept; a layer that keeps its rank keeps its factors, others are
            float32.
        """
        rank = check_rank(rank)
        spectra: dict[str, Spectrum] = {}
        for name, layer in self.layers.items():
            limit = min(layer.shape[0], math.prod(layer.shape[1:]), layer.rank)
            spectra[name] = truncate(svd(self.matrices(name)), target_rank(rank, [layer.rank], limit))
        if isinstance(rank, RankBudget):
            counts = rank.spend([s.S for s in spectra.values()])
            spectra = {name: s.truncated(count) for (name, s), count in zip(spectra.items(), counts)}
        kept = {name: s for name, s in spectra.items() if len(s.S)}
        layers = {
            # What keeps its rank keeps its factors.
            name: self.layers[name]
            if len(s.S) == self.layers[name].rank
            else layer_of(s.factors(), self.layers[name].shape)
            for name, s in kept.items()
        }
        rows = [
            LayerReport(name, len(s.S), s.energy, s.kept, note=rank_note(rank, len(s.S))) for name, s in spectra.items()
        ]
        return replace(self, layers=layers, source=f"{self.name} at rank {rank}", report=Report((), tuple(rows)))

    def state_dict(self, format: str = "diffusers", dtype: torch.dtype | str | None = None) -> dict[str, Tensor]:
        """The tensors of a file in this format, by key; see `save`."""
        return formats.state_dict(self, format, formats.to_dtype(dtype))

    def save(
        self,
        path: str | os.PathLike[str],
        format: str = "diffusers",
        dtype: torch.dtype | str | None = None,
        overwrite: bool = True,
    ) -> Path:
        """Write the adapter.

        The file is written beside its target and renamed when it is whole, so that a full disk or an interruption
        leaves what was there.

        Args:
            path: a `.safetensors` file; for "peft" a folder.
            format: "diffusers" (also read by nunchaku), "kohya" (also by ComfyUI, A1111, Forge), or "peft".
            dtype: "float32", "float16", "bfloat16"; None keeps every tensor exact in the dtype it has.
            overwrite: whether an existing file may be replaced. A file that went into the adapter never is.

        Returns:
            The path.

        Raises:
            OutputError: the target is an input, exists, cannot be written, or a value overflows the dtype.
            FormatError, ArchitectureError: the format has no name for a layer or an extra.
        """
        target = Path(path)
        formats.check_format(format)
        check_target(target, self.inputs, overwrite, format)
        formats.save(self, target, format, formats.to_dtype(dtype))
        return target

    # What a person sees.

    def _table(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [("component", "layers", "ranks", "parameters")]
        for component in dict.fromkeys(name.partition(".")[0] for name in self.layers):
            own = [layer for name, layer in self.layers.items() if name.startswith(f"{component}.")]
            ranks = Counter(layer.rank for layer in own)
            shown = ", ".join(f"{rank} x {count}" for rank, count in sorted(ranks.items())[:4])
            size = sum(layer.rank * (layer.shape[0] + math.prod(layer.shape[1:])) for layer in own)
            rows.append((component, str(len(own)), shown + (", ..." if len(ranks) > 4 else ""), f"{size:,}"))
        return rows

    def _base_model(self) -> str:
        parts = {layer.partition(".")[0] for layer in self.layers}
        kind = next((f"{part} of an " for part in ("unet", "transformer") if part in parts), "")
        return self.architecture or f"{kind}unknown base model"

    def __repr__(self) -> str:
        rows = self._table()
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows]
        extras = [f"and {len(self.extras)} tensors that are no layers"] if self.extras else []
        return "\n".join([f"Adapter {self.name} ({self._base_model()})", *lines, *extras])

    def _repr_html_(self) -> str:
        head, *rows = (
            "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
            for tag, row in zip(["th"] + ["td"] * len(self._table()), self._table())
        )
        body = "".join(f"<tr>{row}</tr>" for row in rows)
        title = html.escape(f"Adapter {self.name} ({self._base_model()})")
        return f"<b>{title}</b><table><tr>{head}</tr>{body}</table>"


def load(source: Source, *, allow_pickle: bool = False) -> Adapter:
    """Read a LoRA adapter in any supported dialect.

    Args:
        source: a path to a safetensors file or a PEFT folder; "user/repo/file.safetensors" on the Hugging Face Hub;
            an address such as "s3://..."; or a state dict. Files are memory-mapped.
        allow_pickle: read `.bin`, `.pt`, `.ckpt` too (with `weights_only=True`).

    Returns:
        The adapter, with layers under canonical names.

    Raises:
        SourceError: nothing there, or it cannot be read.
        FormatError, LayerError: a damaged file, an unsupported dialect, a factor without its partner.

    Example:
        >>> import torch
        >>> load({"unet.conv_in.lora_A.weight": torch.ones(2, 3), "unet.conv_in.lora_B.weight": torch.ones(4, 2)}).ranks
        {'unet.conv_in': 2}
    """
    data, files = formats.read(source, formats.ReadOptions(allow_pickle=allow_pickle))
    return Adapter(**vars(data), report=Report(notes=data.notes), inputs=files)


def check_target(target: Path, inputs: tuple[Path, ...], overwrite: bool, format: str) -> None:
    """Raise unless `target` may be written: it is no input, does not exist or may be replaced."""
    if target.suffix.lower() != ".safetensors" and format != "peft":
        raise OutputError(f"{target}: expected a name that ends in .safetensors, by which tools know such a file")
    try:
        exists = target.exists()
        for path in inputs:
            # A folder that is an output is replaced as a whole, with whatever inputs lie within it.
            at_stake = [path, *path.resolve().parents] if target.is_dir() else [path]
            same = exists and any(p.exists() and target.samefile(p) for p in at_stake)
            if same or target.resolve() == path.resolve():
                raise OutputError(f"{target}: is an input of this adapter, and an output never replaces an input")
        if exists and not overwrite:
            raise OutputError(f"{target}: exists already; choose another name, or allow it to be replaced (--force)")
        if not target.parent.is_dir():
            raise OutputError(f"{target}: there is no folder {target.parent}")
    except (OSError, ValueError) as error:
        raise OutputError(f"{target}: cannot be written: {error}") from None


def _scaled_biases(extras: Mapping[str, Tensor], factor: float) -> dict[str, Tensor]:
    return {k: t.float() * factor if k.endswith(BIAS_SUFFIX) and factor != 1 else t for k, t in extras.items()}


def _same_kernel(*terms: LoraLayer) -> tuple[LoraLayer, ...]:
    """A 1 x 1 convolution may stand beside a linear layer: give all the dimensions of the largest."""
    dims = max(term.lora_A.dim() for term in terms)

    def padded(x: Tensor) -> Tensor:
        return x.reshape(*x.shape, *[1] * (dims - x.dim()))

    return tuple(LoraLayer(padded(t.lora_A), padded(t.lora_B), t.scaling) for t in terms)
