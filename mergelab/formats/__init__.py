"""Files in, files out: the only place that knows the key names of files."""

from mergelab.formats.files import PICKLES, sha256_of
from mergelab.formats.sources import read
from mergelab.formats.writing import FORMATS, check_format, header, save, state_dict, to_dtype

__all__ = ["FORMATS", "PICKLES", "check_format", "header", "read", "save", "sha256_of", "state_dict", "to_dtype"]
