"""From what a user gives (a path, a name on the Hub, an s3 address, a state dict) to `AdapterData`."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mergelab import miniature
from mergelab.errors import FormatError, SourceError
from mergelab.formats.messages import about
from mergelab.formats.options import ReadOptions
from mergelab.formats.prefixes import COMPONENTS
from mergelab.formats.reading import parse
from mergelab.formats.scalings import config_scaling, for_all_components
from mergelab.formats.tensor_files import PICKLES, check_tensors, read_tensors
from mergelab.layer import AdapterData

PEFT_CONFIG = "adapter_config.json"
PEFT_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
_STATE_DICT = "<state dict>"

Files = tuple[Path, ...]


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
        return parse(tensors, {}, _STATE_DICT, architecture=options.architecture), ()
    if not isinstance(source, (str, os.PathLike)):
        raise SourceError(f"expected a path, a name on the Hub or a state dict, found {type(source).__name__}")
    path = _local(os.fspath(source))
    if path.is_dir():
        return _read_folder(path, options)
    return _read_file(path, options)


def _read_file(path: Path, options: ReadOptions) -> tuple[AdapterData, Files]:
    tensors, metadata = read_tensors(path, options)
    return parse(tensors, metadata, str(path), architecture=options.architecture), (path,)


def _local(source: str) -> Path:
    """A local path; what is elsewhere is fetched first."""
    if "://" in source:
        return _fetch(source)
    try:
        path = Path(source).expanduser()
        if path.exists():
            return path
    except (OSError, ValueError, RuntimeError) as error:
        raise SourceError(f"{source}: there is no such file or folder: {error}") from None
    if source.startswith(miniature.PREFIX):
        return miniature.adapter(source).path
    parts = source.split("/")
    # "loras/style/x.safetensors" beside a folder "loras" is a slip of the pen, and nothing to ask the Hub for.
    here = source.startswith((".", "/", "~")) or "\\" in source or Path(parts[0]).exists()
    looks_remote = len(parts) >= 2 and not here
    if looks_remote and (len(parts) == 2) == (Path(source).suffix not in (".safetensors", *PICKLES)):
        return _from_hub(parts, source)
    raise SourceError(f"{source}: there is no such file or folder")


def _from_hub(parts: list[str], source: str) -> Path:
    from huggingface_hub import HfApi, hf_hub_download

    repo, filename = "/".join(parts[:2]), "/".join(parts[2:])
    try:
        if not filename:
            files = [f for f in HfApi().list_repo_files(repo) if f.endswith(".safetensors")]
            if len(files) != 1:
                raise SourceError(
                    f"{source}: the repository holds {len(files)} safetensors files, name one of them: "
                    + ", ".join(f"{repo}/{f}" for f in files[:5])
                )
            filename = files[0]
        return Path(hf_hub_download(repo, filename))
    except SourceError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise SourceError(
            f"{source}: there is no such file here, and it could not be fetched from the Hugging Face Hub: "
            f"{type(error).__name__}: {reason}"
        ) from None


def _fetch(url: str) -> Path:
    """Download an address of any file system that fsspec knows ("s3://", "https://", "gs://", ...)."""
    import fsspec

    name = url.rstrip("/").rsplit("/", 1)[-1]
    target = Path(tempfile.mkdtemp(prefix="mergelab-")) / name
    try:
        with fsspec.open(url, "rb") as remote, target.open("wb") as local:
            while block := remote.read(1 << 22):
                local.write(block)
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise SourceError(f"{url}: could not be fetched: {type(error).__name__}: {reason}") from None
    return target


def _read_folder(folder: Path, options: ReadOptions) -> tuple[AdapterData, Files]:
    if (folder / PEFT_CONFIG).is_file():
        return _read_peft(folder, None, options)
    parts = [c for c in (*COMPONENTS, "model") if (folder / c / PEFT_CONFIG).is_file()]
    if parts:
        return _joined(folder, [_read_peft(folder / c, c, options) for c in parts])
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        names = ", ".join(f.name for f in files[:5]) or "none"
        raise SourceError(
            f"{folder}: expected a PEFT folder ({PEFT_CONFIG} and {PEFT_WEIGHTS[0]}) or one safetensors file, found "
            f"{names}; name the file"
        )
    return _read_file(files[0], options)


def _joined(folder: Path, parts: list[tuple[AdapterData, Files]]) -> tuple[AdapterData, Files]:
    """One adapter from the PEFT folders of its components."""
    datas = [data for data, _ in parts]
    known = [data.architecture for data in datas if data.architecture]
    joined = AdapterData(
        layers={name: layer for data in datas for name, layer in data.layers.items()},
        extras={name: tensor for data in datas for name, tensor in data.extras.items()},
        architecture=known[0] if known else None,
        metadata=datas[0].metadata,
        source=str(folder),
        notes=tuple(dict.fromkeys(note for data in datas for note in data.notes)),
        dialect=datas[0].dialect,
        spelling={name: spelt for data in datas for name, spelt in data.spelling.items()},
    )
    return joined, tuple(path for _, paths in parts for path in paths)


def _read_peft(folder: Path, component: str | None, options: ReadOptions) -> tuple[AdapterData, Files]:
    config_path = folder / PEFT_CONFIG
    with about(config_path):
        config = _read_config(config_path)
    weights = next((folder / name for name in PEFT_WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise SourceError(f"{folder}: there is no {' or '.join(PEFT_WEIGHTS)} beside {PEFT_CONFIG}")
    tensors, metadata = read_tensors(weights, options)
    with about(config_path):
        scaling_of = for_all_components(config_scaling(config))
    component = component or metadata.get("mergelab.component")
    data = parse(
        tensors,
        metadata,
        str(folder),
        scaling_of=scaling_of,
        component=component,
        config=config,
        architecture=options.architecture,
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
