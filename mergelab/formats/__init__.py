"""Files in, files out: the only place that knows the key names of files."""

from mergelab.formats.files import sha256_of
from mergelab.formats.options import ReadOptions
from mergelab.formats.sources import read
from mergelab.formats.tensor_files import PICKLES
from mergelab.formats.writing import FORMATS, check_format, header, save, state_dict, to_dtype

__all__ = [
    "FORMATS",
    "PICKLES",
    "ReadOptions",
    "check_format",
    "header",
    "read",
    "save",
    "sha256_of",
    "state_dict",
    "to_dtype",
]
