"""Files in, files out: the only place that knows the key names of files."""

from mergelab.formats.base_sources import BaseSource
from mergelab.formats.base_weights import BaseWeights
from mergelab.formats.files import hashing, sha256_of
from mergelab.formats.options import ReadOptions
from mergelab.formats.planning import check_choice, check_writable, plan, to_dtype
from mergelab.formats.saving import Savable
from mergelab.formats.sources import located, read
from mergelab.formats.tools import TOOLS
from mergelab.formats.words import joined, trigger_words

__all__ = [
    "TOOLS",
    "BaseSource",
    "BaseWeights",
    "ReadOptions",
    "Savable",
    "check_choice",
    "check_writable",
    "hashing",
    "joined",
    "located",
    "plan",
    "read",
    "sha256_of",
    "to_dtype",
    "trigger_words",
]
