"""The base models that mergelab knows: one file and one `Architecture` for each family, and what is asked of them."""

from mergelab.formats.architectures.architecture import Architecture, Kohya
from mergelab.formats.architectures.base_models import check_base_models
from mergelab.formats.architectures.detecting import detect
from mergelab.formats.architectures.evidence import Evidence
from mergelab.formats.architectures.registry import ARCHITECTURES

__all__ = ["ARCHITECTURES", "Architecture", "Evidence", "Kohya", "check_base_models", "detect"]
