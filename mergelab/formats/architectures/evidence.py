"""What a file shows of its base model: the questions that the rules of an `Architecture` ask."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property

DENOISERS = ("transformer", "unet")
WITNESSES = ("modelspec.architecture", "ss_base_model_version")
"""The strings of a header that say which base model a file is for."""

Shape = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Evidence:
    """Shapes of the weights that a file changes, by component and module path, and what its header says.

    Attributes:
        shapes: component -> module path -> `(out, in[, kh, kw])`.
        header: modelspec's architecture and kohya's base model version, in lower case.

    Example:
        >>> evidence = Evidence.of({"unet.mid_block.attn2.to_k": (1280, 768)}, {"ss_base_model_version": "sd_v1"})
        >>> evidence.denoiser, evidence.inputs(r"attn2\\.to_k$"), evidence.says("sd_v1")
        ('unet', {768}, True)
    """

    shapes: Mapping[str, Mapping[str, Shape]]
    header: str

    @classmethod
    def of(cls, shapes: Mapping[str, Shape], metadata: Mapping[str, str]) -> Evidence:
        """From canonical layer names with their shapes, and the header's strings."""
        by_component: dict[str, dict[str, Shape]] = {}
        for name, shape in shapes.items():
            component, _, path = name.partition(".")
            by_component.setdefault(component, {})[path] = shape
        declared = (metadata.get(key, "") for key in WITNESSES)
        return cls(by_component, " ".join(declared).lower())

    @cached_property
    def denoiser(self) -> str | None:
        """The component that draws, None in a file of text encoders alone."""
        return next((component for component in DENOISERS if component in self.shapes), None)

    def has(self, component: str) -> bool:
        """Whether some layer belongs to the component."""
        return component in self.shapes

    def modules(self, component: str) -> Mapping[str, Shape]:
        """Module paths of a component, with shapes."""
        return self.shapes.get(component, {})

    def named(self, pattern: str, component: str | None = None) -> bool:
        """Whether some module of a component, by default of the denoiser, is named so."""
        return any(re.search(pattern, path) for path in self.modules(component or self.denoiser or ""))

    def weights(self, pattern: str) -> set[Shape]:
        """Shapes of the weights of the denoiser's modules of these names."""
        return {shape for path, shape in self.modules(self.denoiser or "").items() if re.search(pattern, path)}

    def inputs(self, pattern: str) -> set[int]:
        """How many inputs the denoiser's modules of these names have."""
        return {shape[1] for shape in self.weights(pattern)}

    def ratios(self, pattern: str) -> set[float]:
        """Outputs over inputs of the denoiser's modules of these names."""
        named = (shape for path, shape in self.modules(self.denoiser or "").items() if re.search(pattern, path))
        return {shape[0] / shape[1] for shape in named}

    def blocks(self, name: str) -> int:
        """How many blocks of a name the denoiser has at least: one more than the highest number after it."""
        pattern = re.compile(rf"(?:^|\.){re.escape(name)}\.(\d+)\.")
        numbers = (int(m[1]) for path in self.modules(self.denoiser or "") if (m := pattern.search(path)))
        return max(numbers, default=-1) + 1

    def may_be(self, blocks: Mapping[str, int], pattern: str = "", others: Collection[int] = ()) -> bool:
        """Whether it is a transformer of at most so many blocks, by their names, and of none of other widths.

        Args:
            blocks: the name of blocks -> how many the model has.
            pattern: of modules with as many inputs as the model is wide.
            others: widths of other models.
        """
        deep = any(self.blocks(name) > count for name, count in blocks.items())
        return self.denoiser == "transformer" and not deep and self.inputs(pattern).isdisjoint(others)

    def says(self, pattern: str) -> bool:
        """Whether the header does."""
        return bool(re.search(pattern, self.header))
