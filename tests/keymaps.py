"""The names and shapes of real files, as `data/keymaps.json.xz` has them.

`python tests/keymaps.py SHARED/data/keymaps` writes that file anew from a folder of `NAME.json` (key -> shape) and
`NAME.meta` (the header's strings as "metadata").
"""

from __future__ import annotations

import json
import lzma
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

COPY = Path(__file__).parent / "data" / "keymaps.json.xz"


class KeyMap(NamedTuple):
    """What a file holds, without its values.

    Attributes:
        shapes: key -> shape.
        metadata: the header's strings, None where there are none.
    """

    shapes: dict[str, list[int]]
    metadata: dict[str, str] | None


@cache
def keymaps() -> dict[str, KeyMap]:
    """All key maps by name, from the copy in this repository."""
    return {name: KeyMap(*entry) for name, entry in json.loads(lzma.decompress(COPY.read_bytes())).items()}


def from_folder(folder: Path) -> dict[str, KeyMap]:
    """All key maps of a folder."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        meta = path.with_suffix(".meta")
        metadata = json.loads(meta.read_text())["metadata"] if meta.is_file() else None
        found[path.stem] = KeyMap(json.loads(path.read_text()), metadata)
    return found


if __name__ == "__main__":
    text = json.dumps(from_folder(Path(sys.argv[1])), separators=(",", ":"))
    COPY.write_bytes(lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME))
