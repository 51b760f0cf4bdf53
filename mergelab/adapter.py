"""`Adapter`: what a LoRA file holds, as an element of a vector space that can be saved."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase

import torch
from torch import Tensor

from mergelab import algebra, formats, miniature
from mergelab.checks import EXPECTED_NUMBER, is_number, short_repr
from mergelab.describing import base_model_of, overview, short_name
from mergelab.devices import AUTO, LAYER_BY_LAYER, Device, chosen_device
from mergelab.errors import LayerError, OptionError
from mergelab.formats.base_models import check_base_models
from mergelab.formats.dialects import common_dialect
from mergelab.linalg.lowrank import inner
from mergelab.linalg.workspace import each_layer
from mergelab.publishing import Publishable
from mergelab.publishing.recipe import resized_header
from mergelab.ranks import Rank, check_rank, rank_record, rank_text
from mergelab.report import Report
from mergelab.tables import as_html, as_text, counted

Source = str | os.PathLike[str] | Mapping[str, Tensor]
Base = formats.BaseSource | formats.BaseWeights


@dataclass(frozen=True, eq=False, repr=False)
class Adapter(Publishable):
    """A LoRA adapter: layers by canonical name, and everything else its file held.

    Adapters form a vector space: `0.8 * a + 0.6 * b - c` is an adapter whose change is exactly that, at the sum of
    the ranks; nothing is computed before it is needed.

    Attributes:
        layers: canonical name `<component>.<module path>` -> layer; components are unet, transformer, text_encoder,
            text_encoder_2, or model where the architecture is unknown.
        extras: tensors that are no LoRA factors: biases, norms, textual-inversion embeddings.
        architecture: the id of its base model ("sd15", "sd2", "sdxl", "flux"), or None where it cannot be told.
        metadata: the header's strings.
        report: what a merge or a resize kept and lost, or how a file was read.
        inputs: the files it was made from, which `save` never replaces.
        origin: of one that was read from a file its source; what is made from it has another source.

    Example:
        >>> import torch
        >>> from mergelab import LoraLayer
        >>> a = Adapter({"unet.conv_in": LoraLayer(torch.ones(2, 3), torch.ones(4, 2))})
        >>> (0.5 * a + a).layers["unet.conv_in"].delta_weight()[0, 0].item()
        3.0
        >>> a.ranks, (a - a).norm()
        ({'unet.conv_in': 2}, 0.0)
    """

    report: Report = field(default_factory=Report)
    origin: str = ""

    def __post_init__(self) -> None:
        for name in self.layers:
            if "." not in name:
                raise LayerError(f"{self.source}: layer {name!r}: expected a name such as 'unet.mid_block...'")

    @property
    def is_file(self) -> bool:
        """Whether this is a file (or a PEFT folder) as it was read, and nothing made from it."""
        return bool(self.inputs) and self.source == self.origin

    @property
    def is_on_the_hub(self) -> bool:
        """Whether `source` is a name on the Hugging Face Hub, and neither a path here nor another address."""
        here = {str(place) for path in self.inputs for place in (path, *path.parents)}
        return self.is_file and "://" not in self.source and self.source not in here

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
            raise OptionError(f"an adapter times {short_repr(factor)}: {EXPECTED_NUMBER}")
        return replace(
            self,
            layers=algebra.scale_layers(self.layers, float(factor)),
            extras=algebra.scale_extras(self.extras, float(factor)),
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
        names = self.name, other.name
        check_base_models([self, other], names)
        dialect, spelling = common_dialect([self, other])
        return replace(
            self,
            layers=algebra.add_layers(self.layers, other.layers, names),
            extras=algebra.add_extras(self.extras, other.extras, names),
            architecture=self.architecture or other.architecture,
            source=f"{self.name} + {other.name}",
            inputs=(*self.inputs, *other.inputs),
            dialect=dialect,
            spelling=spelling,
            report=Report(),
            metadata={},
        )

    def inner(self, other: Adapter) -> float:
        """Frobenius inner product of the changes, summed over the layers that both have; from the factors.

        Raises:
            ArchitectureError: the two are for different base models.
            LayerError: a layer has another shape in each, or holds NaN or infinity.

        Example:
            >>> a = load("miniature/sdxl/ghost")
            >>> a.inner(-2 * a) == -2 * a.inner(a)
            True
        """
        if other is not self:
            names = self.name, other.name
            check_base_models([self, other], names)
            algebra.check_shapes(self.layers, other.layers, names)
        shared = [name for name in self.layers if name in other.layers]
        return sum(each_layer(lambda name: float(inner(self.matrices(name), other.matrices(name))), shared).values())

    def norm(self) -> float:
        """Frobenius norm of the change, over all layers; from the factors (to 1e-8 of the terms it is a sum of).

        Example:
            >>> a = load("miniature/sdxl/ghost")
            >>> (-2 * a).norm() == 2 * a.norm(), (a - a).norm() < 1e-6 * a.norm()
            (True, True)
        """
        return math.sqrt(max(0.0, self.inner(self)))

    def cosine(self, other: Adapter) -> float:
        """Cosine of the angle between two changes, in [-1, 1]; 0 where one of them is zero. Raises as `inner` does.

        Example:
            >>> a = load("miniature/sdxl/ghost")
            >>> round(a.cosine(3 * a), 6), round(a.cosine(-a), 6), a.cosine(0 * a)
            (1.0, -1.0, 0.0)
        """
        norms = self.norm() * other.norm()
        return max(-1.0, min(1.0, self.inner(other) / norms)) if norms > 0 else 0.0

    # Parts, ranks.

    def select(self, pattern: str) -> Adapter:
        """The layers whose names match an `fnmatch` pattern, or belong to a component; with their biases.

        Raises:
            OptionError: nothing matches.

        Example:
            >>> a = load("miniature/sdxl/ghost")
            >>> len(a.select("unet").layers), len(a.select("unet.up_blocks.*").layers)
            (48, 24)
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

    def resize(self, rank: Rank, *, device: Device = AUTO) -> Adapter:
        """The best approximation at another rank, layer by layer; exact where the rank is not below what is there.

        Args:
            rank: as for `merge`: an int, a share of the squared singular values in (0, 1), a `RankBudget`, or one of
                kohya's rules, `SvRatio(2, max=32)`, `SvFro(0.9)`, `SvCumulative(0.8)` ("sv_ratio=2,max=32", ...).
            device: where to compute; "auto" is the CPU here, where a GPU, layer by layer, would be slower.

        Returns:
            An adapter with a `report`; a layer that keeps its rank keeps its factors, others are float32. Its header
            says that it was resized.

        Raises:
            OptionError, LayerError: a rank out of its range, no such device; a layer that holds NaN or infinity.

        Example:
            >>> small = load("miniature/sdxl/ghost").resize(4)
            >>> set(small.ranks.values()), round(small.report.retained_energy, 2)
            ({4}, 0.83)
            >>> max(load("miniature/sdxl/ghost").resize("sv_ratio=2,max=6").ranks.values())
            6
        """
        rank = check_rank(rank)
        layers, report = algebra.resize_layers(self, rank, chosen_device(device, LAYER_BY_LAYER))
        resized = replace(self, layers=layers, source=f"{self.name} at rank {rank_text(rank)}", report=report)
        if all(layers.get(name) is layer for name, layer in self.layers.items()):
            return resized
        digest = formats.sha256_of(self.inputs[0]) if self.is_file else None
        return replace(resized, metadata=resized_header(self.metadata, self.name, digest, rank_record(rank)))

    # What a person sees.

    def _title(self) -> str:
        return f"Adapter {self.name} ({miniature.pipeline_of(self.inputs) or base_model_of(self)})"

    def __repr__(self) -> str:
        extras = [f"and {counted(len(self.extras), 'tensor')} beside the layers"] if self.extras else []
        return "\n".join([self._title(), as_text(overview(self.layers)), *extras])

    def _repr_html_(self) -> str:
        return as_html(self._title(), overview(self.layers))


def load(
    source: Source, *, allow_pickle: bool = False, architecture: str | None = None, base: Base | None = None
) -> Adapter:
    """Read a LoRA adapter in any supported dialect.

    Args:
        source: a safetensors file or a PEFT folder here, on the Hugging Face Hub ("user/repo@v2/style.safetensors") or
            at an address (https, s3, ...); "miniature/sdxl/ghost"; or a state dict. Files are memory-mapped.
        allow_pickle: read `.bin`, `.pt`, `.ckpt` too (with `weights_only=True`).
        architecture: the base model's id ("sdxl", "flux", ...), where a file does not tell; checked against the file.
        base: the base model, for adapters that are functions of its weights (DoRA, OFT, BOFT, GLoRA, (IA)3): a
            safetensors file, a diffusers folder, a state dict, or a loaded pipeline; read layer by layer, when needed.

    Returns:
        The adapter, with layers under canonical names.

    Raises:
        SourceError: nothing there, or it cannot be read.
        FormatError, LayerError: a damaged file, an unsupported dialect, a factor without its partner.
        OptionError: no such architecture, or miniature adapter ("miniature/sdxl/ghst").
        ArchitectureError: the file is not for the architecture that is asked for.

    Example:
        >>> import torch
        >>> load({"unet.conv_in.lora_A.weight": torch.ones(2, 3), "unet.conv_in.lora_B.weight": torch.ones(4, 2)}).ranks
        {'unet.conv_in': 2}
    """
    data, files = formats.read(source, formats.ReadOptions(allow_pickle, architecture, base))
    return Adapter(**vars(data), report=Report(notes=data.notes), inputs=files, origin=data.source)
