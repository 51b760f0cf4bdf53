"""The base models that mergelab knows: one file and one `Architecture` for each family, and the table of them."""

from mergelab.formats.architectures.architecture import Architecture, Kohya
from mergelab.formats.architectures.evidence import Evidence
from mergelab.formats.architectures.registry import ARCHITECTURES

__all__ = ["ARCHITECTURES", "Architecture", "Evidence", "Kohya"]
