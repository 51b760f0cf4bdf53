"""From what a user gives (a path, a name on the Hub, an address, a state dict) to `AdapterData`."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mergelab import miniature
from mergelab.errors import FormatError, SourceError
from mergelab.formats.fetching import fetch, is_address, said
from mergelab.formats.messages import about
from mergelab.formats.options import ReadOptions
from mergelab.formats.peft_config import PEFT_CONFIG, PEFT_WEIGHTS
from mergelab.formats.prefixes import COMPONENTS
from mergelab.formats.reading import parse
from mergelab.formats.scalings import config_scaling, for_all_components
from mergelab.formats.strangers import check_adapter
from mergelab.formats.tensor_files import check_tensors, read_tensors
from mergelab.layer import AdapterData

_STATE_DICT = "<state dict>"

Files = tuple[Path, ...]
# What messages call a file: its path, or where it was fetched from; never its place in the cache.
Called = Callable[[Path], str]


def read(source: str | os.PathLike[str] | Mapping[str, Tensor], options: ReadOptions) -> tuple[AdapterData, Files]:
    """What a source holds, and the files it came from.

    Raises:
        SourceError: nothing there, or it cannot be read.
        OptionError: there is no miniature adapter of this name.
        FormatError, LayerError: a damaged file, an unsupported dialect, a factor without its partner.
    """
    if isinstance(source, Mapping):
        with about(_STATE_DICT):
            tensors = check_tensors(source)
            check_adapter(tensors)
        return parse(tensors, {}, _STATE_DICT, options=options), ()
    if not isinstance(source, (str, os.PathLike)):
        raise SourceError(f"expected a path, a name on the Hub or a state dict, found {type(source).__name__}")
    path, called = _local(os.fspath(source))
    if path.is_dir():
        return _read_folder(path, options, called)
    return _read_file(path, options, called)


def located(source: str | os.PathLike[str] | None) -> Path | None:
    """Where a file is on this machine; what is elsewhere is fetched first. None stays None.

    Raises:
        SourceError: nothing there, or a folder.
    """
    if source is None:
        return None
    path, called = _local(os.fspath(source))
    if path.is_dir():
        raise SourceError(f"{called(path)}: is a folder, expected a file")
    return path


def _read_file(path: Path, options: ReadOptions, called: Called) -> tuple[AdapterData, Files]:
    if path.name in PEFT_WEIGHTS and path.with_name(PEFT_CONFIG).is_file():
        return _read_peft(path, None, options, called, source=path)
    with about(called(path)):
        tensors, metadata = read_tensors(path, options.allow_pickle)
        check_adapter(tensors)
    return parse(tensors, metadata, called(path), options=options), (path,)


def _local(source: str) -> tuple[Path, Called]:
    """A local path; what is elsewhere is fetched first."""
    if is_address(source):
        return _fetched(source)
    try:
        path = Path(source).expanduser()
        if path.exists():
            return path, str
        # "loras/style/x.safetensors" beside a folder "loras" is a slip of the pen, and nothing to ask the Hub for.
        here = source.startswith((".", "/", "~")) or Path(source.split("/")[0]).exists()
    except (OSError, ValueError, RuntimeError) as error:
        raise SourceError(f"{source}: there is no such file or folder: {error}") from None
    if source.startswith(miniature.PREFIX):
        return miniature.adapter(source).path, str
    if here:
        raise SourceError(f"{source}: there is no such file or folder")
    return _fetched(source)


def _fetched(source: str) -> tuple[Path, Called]:
    fetched = fetch(source)
    address = said(source, fetched)
    folder = fetched if fetched.is_dir() else fetched.parent
    start = address if fetched.is_dir() else address.rpartition("/")[0]
    return fetched, lambda path: address if path == fetched else f"{start}/{path.relative_to(folder).as_posix()}"


def _read_folder(folder: Path, options: ReadOptions, called: Called) -> tuple[AdapterData, Files]:
    if (folder / PEFT_CONFIG).is_file():
        return _read_peft(_weights_in(folder, called), None, options, called, source=folder)
    parts = [c for c in (*COMPONENTS, "model") if (folder / c / PEFT_CONFIG).is_file()]
    if parts:
        read_parts = [_read_peft(_weights_in(folder / c, called), c, options, called, source=folder / c) for c in parts]
        return _joined(called(folder), read_parts)
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        names = ", ".join(f.name for f in files[:5]) or "none"
        raise SourceError(
            f"{called(folder)}: expected a PEFT folder ({PEFT_CONFIG} and {PEFT_WEIGHTS[0]}) or one safetensors file, "
            f"found {names}; name the file"
        )
    return _read_file(files[0], options, called)


def _joined(source: str, parts: list[tuple[AdapterData, Files]]) -> tuple[AdapterData, Files]:
    """One adapter from the PEFT folders of its components."""
    datas = [data for data, _ in parts]
    counts = Counter(name for data in datas for name in (*data.layers, *data.extras))
    if twice := [name for name, count in counts.items() if count > 1]:
        raise FormatError(f"{source}: two of its folders hold {twice[0]}; expected one for each component")
    known = [data.architecture for data in datas if data.architecture]
    joined = AdapterData(
        layers={name: layer for data in datas for name, layer in data.layers.items()},
        extras={name: tensor for data in datas for name, tensor in data.extras.items()},
        architecture=known[0] if known else None,
        metadata=datas[0].metadata,
        source=source,
        notes=tuple(dict.fromkeys(note for data in datas for note in data.notes)),
        dialect=datas[0].dialect,
        spelling={name: spelt for data in datas for name, spelt in data.spelling.items()},
    )
    return joined, tuple(path for _, paths in parts for path in paths)


def _weights_in(folder: Path, called: Called) -> Path:
    for name in PEFT_WEIGHTS:
        if (folder / name).is_file():
            return folder / name
    raise SourceError(f"{called(folder)}: there is no {' or '.join(PEFT_WEIGHTS)} beside {PEFT_CONFIG}")


def _read_peft(
    weights: Path, component: str | None, options: ReadOptions, called: Called, *, source: Path
) -> tuple[AdapterData, Files]:
    """PEFT's weights with the config beside them; `source` is what was asked for, the folder or the file."""
    config_path = weights.with_name(PEFT_CONFIG)
    with about(called(config_path)):
        config = _read_config(config_path)
        scaling_of = for_all_components(config_scaling(config, options.base is not None))
    with about(called(weights)):
        tensors, metadata = read_tensors(weights, options.allow_pickle)
    component = component or metadata.get("mergelab.component")
    data = parse(
        tensors,
        metadata,
        called(source),
        scaling_of=scaling_of,
        component=component,
        config=config,
        options=options,
    )
    return data, (weights, config_path)


def _read_config(path: Path) -> dict[str, Any]:
    try:
        config: Any = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise FormatError(f"is no JSON: {error}") from None
    if not isinstance(config, dict):
        raise FormatError(f"is a {type(config).__name__}, expected 'LORA' as the peft_type of an object")
    return config
