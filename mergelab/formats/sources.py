"""From what a user gives (a path, a name on the Hub, an s3 address, a state dict) to `Contents`."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from mergelab.errors import FormatError, SourceError
from mergelab.formats.files import PICKLES, check_tensors, read_tensors
from mergelab.formats.names import COMPONENTS
from mergelab.formats.reading import ScalingOf, config_scaling, parse
from mergelab.layer import Contents

PEFT_CONFIG = "adapter_config.json"
_CHANGED_BASE = ("pissa", "olora", "corda")
PEFT_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")


def read(
    source: str | os.PathLike[str] | Mapping[str, Tensor], allow_pickle: bool
) -> tuple[Contents, tuple[Path, ...]]:
    """Contents of a source, and the files they came from."""
    if isinstance(source, Mapping):
        return parse(check_tensors(source, "<state dict>"), {}, "<state dict>"), ()
    if not isinstance(source, (str, os.PathLike)):
        raise SourceError(f"expected a path, a name on the Hub or a state dict, found {type(source).__name__}")
    path = _local(os.fspath(source))
    if path.is_dir():
        return _read_folder(path, allow_pickle)
    tensors, metadata = read_tensors(path, allow_pickle)
    return parse(tensors, metadata, str(path)), (path,)


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


def _read_folder(folder: Path, allow_pickle: bool) -> tuple[Contents, tuple[Path, ...]]:
    if (folder / PEFT_CONFIG).is_file():
        return _read_peft(folder, None, allow_pickle)
    parts = [c for c in (*COMPONENTS, "model") if (folder / c / PEFT_CONFIG).is_file()]
    if parts:
        return _joined(folder, [_read_peft(folder / c, c, allow_pickle) for c in parts])
    files = sorted(folder.glob("*.safetensors"))
    if len(files) != 1:
        found = ", ".join(f.name for f in files[:5]) or "none"
        raise SourceError(
            f"{folder}: expected a PEFT folder ({PEFT_CONFIG} and {PEFT_WEIGHTS[0]}) or one safetensors file, found "
            f"{found}; name the file"
        )
    tensors, metadata = read_tensors(files[0], allow_pickle)
    return parse(tensors, metadata, str(files[0])), (files[0],)


def _joined(folder: Path, parts: list[tuple[Contents, tuple[Path, ...]]]) -> tuple[Contents, tuple[Path, ...]]:
    """One adapter from the PEFT folders of its components."""
    contents = [c for c, _ in parts]
    known = [c.architecture for c in contents if c.architecture]
    joined = Contents(
        layers={name: layer for c in contents for name, layer in c.layers.items()},
        extras={name: tensor for c in contents for name, tensor in c.extras.items()},
        architecture=known[0] if known else None,
        metadata=contents[0].metadata,
        source=str(folder),
        notes=tuple(dict.fromkeys(note for c in contents for note in c.notes)),
    )
    return joined, tuple(path for _, paths in parts for path in paths)


def _read_peft(folder: Path, component: str | None, allow_pickle: bool) -> tuple[Contents, tuple[Path, ...]]:
    config_path = folder / PEFT_CONFIG
    try:
        config: Any = json.loads(config_path.read_text(encoding="utf-8"))
    except (ValueError, OSError, RecursionError) as error:
        raise FormatError(f"{config_path}: is no JSON: {error}") from None
    if not isinstance(config, dict) or str(config.get("peft_type", "LORA")).upper() != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise FormatError(f"{config_path}: peft_type is {kind!r}, expected 'LORA'")
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(_CHANGED_BASE):
        raise FormatError(
            f"{config_path}: init_lora_weights is {start!r}: the adapter belongs to a base model that it changed at "
            "the start of training, and is no plain LoRA; convert it with PEFT's save_pretrained, given "
            "path_initial_model_for_weight_conversion"
        )
    weights = next((folder / name for name in PEFT_WEIGHTS if (folder / name).is_file()), None)
    if weights is None:
        raise SourceError(f"{folder}: there is no {' or '.join(PEFT_WEIGHTS)} beside {PEFT_CONFIG}")
    tensors, metadata = read_tensors(weights, allow_pickle)
    by_path = config_scaling(config, str(config_path))
    component = component or metadata.get("mergelab.component")

    def scaling(_: str, path: str, rank: int) -> float:
        return by_path(path, rank)

    scaling_of: ScalingOf = scaling
    contents = parse(tensors, metadata, str(folder), scaling_of=scaling_of, component=component, saved_modules=True)
    return contents, (weights, config_path)
