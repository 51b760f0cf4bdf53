"""What mergelab raises: each message names the file and the layer, what was expected, what was found, what to do."""


class MergelabError(Exception):
    """Base of every error that mergelab raises on purpose."""


class SourceError(MergelabError):
    """A file or folder cannot be found or read at all."""


class FormatError(MergelabError):
    """A file was read, but what it holds is damaged, or in a dialect that is not supported."""


class BaseModelNeeded(FormatError):
    """An adapter is a function of its base model's weights, and these were not given."""


class LayerError(MergelabError, ValueError):
    """One layer's tensors do not fit together: shapes that disagree, a missing factor, NaN or infinity."""


class ArchitectureError(MergelabError, ValueError):
    """Adapters for different base models meet, or a format does not exist for a base model."""


class OptionError(MergelabError, ValueError):
    """An option, a method, a rank or a weight that does not exist or is out of range."""


class OutputError(MergelabError):
    """A result cannot be written: it would overwrite an input, the disk is full, a value does not fit the dtype."""
