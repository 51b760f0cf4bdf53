"""Which files of a component's folder are its weights, where there are several: shards, and copies in other dtypes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from mergelab.errors import FormatError

_SHARD = r"(?:-(\d{5})-of-(\d{5}))?"
_NAME = re.compile(rf"[^.]+?{_SHARD}(?:\.([^.]+?){_SHARD})?\.safetensors")


def of_one_variant(files: Sequence[Path]) -> list[Path]:
    """Of the files of one component those that are its weights once: without a variant in their names, or all of one.

    Args:
        files: of one folder.

    Raises:
        FormatError: a shard is missing; or there are several variants and no plain file, so that it cannot be told.

    Example:
        >>> found = of_one_variant([Path("unet/model.fp16.safetensors"), Path("unet/model.safetensors")])
        >>> [path.name for path in found]
        ['model.safetensors']
    """
    variants: dict[str, dict[Path, tuple[int, int] | None]] = {}
    for path in files:
        match = _NAME.fullmatch(path.name)
        numbers = [int(x) for x in match.groups() if x and x.isdecimal()] if match else []
        variant = match[3] if match and match[3] else ""
        variants.setdefault(variant, {})[path] = (numbers[0], numbers[1]) if len(numbers) == 2 else None
    if "" not in variants and len(variants) > 1:
        names = ", ".join(path.name for variant in variants.values() for path in list(variant)[:1])
        raise FormatError(f"{files[0].parent}: holds its weights in several variants ({names}); keep one of them there")
    chosen = variants[""] if "" in variants else next(iter(variants.values()), {})
    _check_whole(chosen)
    return list(chosen)


def _check_whole(files: Mapping[Path, tuple[int, int] | None]) -> None:
    shards = {shard: path for path, shard in files.items() if shard}
    if not shards:
        return
    (_, count), path = next(iter(shards.items()))
    if missing := set(range(1, count + 1)) - {number for number, _ in shards}:
        raise FormatError(
            f"{path.parent}: shard {min(missing)} of {count} is missing beside {path.name}; download it again"
        )
