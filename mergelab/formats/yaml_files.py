"""YAML files that a user wrote: read as they stand, a key that is there twice included among what is wrong."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from mergelab.errors import OptionError, SourceError
from mergelab.formats.fetching import is_address


def read_yaml(path: Path, *, exponents: bool = False) -> Any:
    """What a file holds.

    Args:
        exponents: 1e-1 is a number, as YAML 1.2 and AI Toolkit have it; in YAML 1.1, which asks for a point, a text.

    Raises:
        SourceError: it is not there.
        OptionError: it is no YAML, or has a key twice, of which YAML would drop one in silence.
    """
    if not path.is_file():
        raise SourceError(f"{path}: there is no such file")
    try:
        return yaml.load(path.read_text(encoding="utf-8"), _WithExponents if exponents else _Loader)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise OptionError(f"{path}: this is no YAML: {' '.join(str(error).split())}") from None


def beside(path: str, folder: Path) -> Path | None:
    """What lies at a path: in the folder of the file or, as `mergelab.load` looks for it, in the working directory."""
    if is_address(path):
        return None
    here = Path(path).expanduser()
    return next(((start / here).resolve() for start in (folder, Path()) if (start / here).exists()), None)


class _Loader(yaml.SafeLoader):
    """Keys are compared as they are written: what `<<` brings in may be there again."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode) and key.value != "<<"]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice[0]!r} is there twice", node.start_mark)
        return node


# True and false alone are truth values, as in YAML 1.2: `on` may be a key, and `no` a word.
_TRUTH = re.compile("true|True|TRUE|false|False|FALSE")
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in known if not tag.endswith(":bool")]
    for first, known in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:bool", _TRUTH, list("tTfF"))


class _WithExponents(_Loader):
    """Numbers may have an exponent without a point."""


_EXPONENT = re.compile(r"[-+]?([0-9]+(\.[0-9]*)?|\.[0-9]+)[eE][-+]?[0-9]+$")
_WithExponents.add_implicit_resolver("tag:yaml.org,2002:float", _EXPONENT, list("-+0123456789."))
