"""Files in, files out: the only place that knows the key names of files."""

from mergelab.formats.files import sha256_of
from mergelab.formats.headers import header
from mergelab.formats.options import ReadOptions
from mergelab.formats.planning import FORMATS, check_choice, check_format, check_writable, plan, to_dtype
from mergelab.formats.saving import Savable
from mergelab.formats.sources import read
from mergelab.formats.tensor_files import PICKLES
from mergelab.formats.tools import TOOLS
from mergelab.formats.words import joined, trigger_words
from mergelab.formats.writing import Written, state_dict, write

__all__ = [
    "FORMATS",
    "PICKLES",
    "TOOLS",
    "ReadOptions",
    "Savable",
    "Written",
    "check_choice",
    "check_format",
    "check_writable",
    "header",
    "joined",
    "plan",
    "read",
    "sha256_of",
    "state_dict",
    "to_dtype",
    "trigger_words",
    "write",
]
