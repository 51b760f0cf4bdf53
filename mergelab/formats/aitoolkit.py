"""AI Toolkit's generate configurations: which adapters at which weights, on which base model, and what to draw."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mergelab.checks import EXPECTED_NUMBER, did_you_mean, is_number, short_repr
from mergelab.errors import OptionError
from mergelab.formats.messages import about
from mergelab.formats.yaml_files import beside, read_yaml

# The keys that AI Toolkit reads, section by section, and a fork of it: lora_paths, lora_weight, walk_seed; the fork's
# example files have negative_prompt.
_TOP = "job config meta".split()
_CONFIG = "name process device meta".split()
_PROCESS = "type name output_folder device dtype model generate performance_log_every".split()
_READ = "name_or_path lora_path lora_weight lora_paths is_flux is_xl is_v2 arch dtype low_vram".split()
_OTHER_ADAPTERS = "assistant_lora_path inference_lora_path unconditional_lora_path".split()
_MODEL = [
    *_READ,
    *_OTHER_ADAPTERS,
    *"""
    is_pixart is_pixart_sigma is_auraflow is_v3 is_lumina2 is_ssd is_vega is_v_pred use_flux_cfg experimental_xl
    vae_path unet_path te_name_or_path extras_name_or_path refiner_name_or_path refiner_start_at model_paths
    latent_space_version use_text_encoder_1 use_text_encoder_2 text_encoder_bits unet_sample_size
    vae_device vae_dtype te_device te_dtype quantize quantize_te qtype qtype_te quantize_kwargs
    accuracy_recovery_adapter attn_masking ignore_if_contains only_if_contains split_model_over_gpus
    split_model_other_module_param_count_scale auto_memory layer_offloading layer_offloading_transformer_percent
    layer_offloading_text_encoder_percent compile block_compile compile_mode compile_fullgraph compile_dynamic
    cache_size_limit model_kwargs in_context
    """.split(),
]
_GENERATE = """
    prompts width height size_list neg negative_prompt neg_2 prompt_2 seed walk_seed guidance_scale guidance_rescale
    sample_steps sampler num_repeats random_prompts max_random_per_prompt max_images shuffle prompt_file ext compile
""".split()
_FLAGS = {"is_flux": "flux", "is_xl": "sdxl", "is_v2": "sd2"}
_ARCHITECTURES = {"flux": "flux", "flux_kontext": "flux", "flex1": "flux", "sdxl": "sdxl", "sd1": "sd15", "sd2": "sd2"}


@dataclass(frozen=True)
class GenerateConfig:
    """What a generate configuration says.

    Attributes:
        path: the file.
        base: the base model: a name on the Hub, a folder, a file, "miniature/flux"; "" where none is named.
        architecture: id of the base model, where the file tells (`is_flux`, `is_xl`, `is_v2`, `arch`).
        loras, weights: the adapters in their order, and one number for each.
        low_vram: whether memory is short.
        model, generate: these sections as they stand.
        device, dtype: of the process.
    """

    path: Path
    base: str
    architecture: str | None
    loras: tuple[str, ...]
    weights: tuple[float, ...]
    low_vram: bool
    model: Mapping[str, Any]
    generate: Mapping[str, Any]
    device: str | None
    dtype: str | None

    @property
    def unread(self) -> tuple[str, ...]:
        """Keys of the model section that are set and say nothing here: other weights, quantisation, ..."""
        return tuple(f"model.{key}" for key, value in self.model.items() if value and key not in _READ)


def generate_config(path: str | os.PathLike[str]) -> GenerateConfig:
    """Read a generate configuration of AI Toolkit: its base model, adapters and weights.

    Adapters stand under `model.lora_paths`, each with a `path` and a `weight` (1.0 where it is missing), or in the
    older form under `lora_path` and `lora_weight`. `${NAME}` stands for a variable of the environment, `[name]` for the
    job's name. Relative paths are looked for beside the file, then in the working directory.

    Raises:
        SourceError: there is no such file.
        OptionError: it is no YAML, or no generate job; a key is unknown, missing, or there in both forms.

    Example:
        >>> from pathlib import Path
        >>> from tempfile import TemporaryDirectory
        >>> from mergelab import merge
        >>> model = "{name_or_path: miniature/flux, lora_paths: [{path: miniature/flux/ghost, weight: 0.8}]}"
        >>> with TemporaryDirectory() as folder:
        ...     file = Path(folder, "generate.yaml")
        ...     _ = file.write_text(f"{{job: generate, config: {{process: [{{type: to_folder, model: {model}}}]}}}}")
        ...     config = generate_config(file)
        >>> config.base, config.loras, config.weights
        ('miniature/flux', ('miniature/flux/ghost',), (0.8,))
        >>> len(merge(config.loras, config.weights).layers)
        52
    """
    if not isinstance(path, (str, os.PathLike)):
        raise OptionError(f"{short_repr(path)}: expected the path of a generate configuration")
    file = Path(path).expanduser()
    content = read_yaml(file, exponents=True)
    with about(file):
        return _generate_config(file, content)


def is_generate_config(content: object) -> bool:
    """Whether this is what a configuration of AI Toolkit holds, of whatever job."""
    return isinstance(content, Mapping) and {"job", "config"} <= set(content)


def _generate_config(file: Path, content: Any) -> GenerateConfig:
    if not is_generate_config(content):
        raise OptionError("expected a generate configuration of AI Toolkit, with the keys 'job' and 'config'")
    top = _section(content, "", _TOP)
    if top.get("job") != "generate":
        raise OptionError(f"job is {short_repr(top.get('job'))}, expected 'generate'")
    outer = top.get("config")
    name = outer.get("name") if isinstance(outer, Mapping) else None
    config = _section(_filled(outer, str(name or "")), "config", _CONFIG)
    processes = config.get("process")
    if not isinstance(processes, list) or len(processes) != 1:
        raise OptionError("config.process: expected a list of one process")
    process = _section(processes[0], "config.process", _PROCESS)
    if process.get("type", "to_folder") != "to_folder":
        raise OptionError(f"config.process.type is {short_repr(process['type'])}, expected 'to_folder'")
    model = _section(process.get("model"), "model", _MODEL)
    loras = _loras(model)
    return GenerateConfig(
        file,
        _text(model["name_or_path"], "model.name_or_path") if "name_or_path" in model else "",
        _architecture(model),
        tuple(_found(path, file.parent) for path, _ in loras),
        tuple(weight for _, weight in loras),
        _truth(model.get("low_vram", False), "model.low_vram"),
        model,
        _section(process.get("generate") or {}, "generate", _GENERATE),
        process.get("device") or config.get("device"),
        model.get("dtype") or process.get("dtype"),
    )


def _filled(value: Any, name: str) -> Any:
    """With variables of the environment and the job's name in their places."""
    if isinstance(value, Mapping):
        return {key: _filled(item, name) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, name) for item in value]
    if not isinstance(value, str):
        return value
    for variable in re.findall(r"\$\{([^}]+)\}", value):
        if variable not in os.environ:
            raise OptionError(f"{value}: the variable {variable} of the environment is not set")
        value = value.replace(f"${{{variable}}}", os.environ[variable])
    return value.replace("[name]", name)


def _section(value: Any, where: str, known: Iterable[str]) -> dict[str, Any]:
    """A mapping of known keys; those that are null are left out."""
    if not isinstance(value, Mapping):
        raise OptionError(f"{where}: expected a mapping of keys, found {short_repr(value)}")
    for key in value:
        if key not in known:
            place = f"{where}.{key}" if where else str(key)
            raise OptionError(f"unknown key {place!r}; {did_you_mean(str(key), sorted(known))}")
    return {key: item for key, item in value.items() if item is not None}


def _loras(model: Mapping[str, Any]) -> list[tuple[str, float]]:
    """Paths and weights, from either form."""
    if other := next((key for key in _OTHER_ADAPTERS if key in model), None):
        raise OptionError(
            f"model.{other}: this adapter has no weight here; list it under model.lora_paths, or leave it out"
        )
    old = [key for key in ("lora_path", "lora_weight") if key in model]
    if "lora_paths" in model and old:
        raise OptionError(f"model.{old[0]} and model.lora_paths are both there; keep lora_paths alone")
    if "lora_weight" in model and "lora_path" not in model:
        raise OptionError("model.lora_weight is there without model.lora_path")
    if "lora_path" in model:
        return [_lora({"path": model["lora_path"], "weight": model.get("lora_weight", 1.0)}, "model.lora_path")]
    entries = model.get("lora_paths")
    if not isinstance(entries, list) or not entries:
        raise OptionError(
            "model.lora_paths: expected a list of entries with 'path' and 'weight'"
            f"{'' if entries is None else f', found {short_repr(entries)}'}"
        )
    return [_lora(entry, f"model.lora_paths.{i}") for i, entry in enumerate(entries)]


def _lora(entry: Any, where: str) -> tuple[str, float]:
    given = _section({"path": entry} if isinstance(entry, str) else entry, where, ("path", "weight"))
    if "path" not in given:
        raise OptionError(f"{where}: the entry has no path")
    weight = given.get("weight", 1.0)
    if isinstance(weight, str):
        raise OptionError(f"{where}: weight {short_repr(weight)} is a text, expected a number; leave out the quotes")
    if not is_number(weight):
        raise OptionError(f"{where}: weight {short_repr(weight)}: {EXPECTED_NUMBER}")
    return _text(given["path"], where), float(weight)


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise OptionError(f"{where}: expected a path or a name, found {short_repr(value)}")
    return value


def _truth(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise OptionError(f"{where}: expected true or false, found {short_repr(value)}")
    return value


def _architecture(model: Mapping[str, Any]) -> str | None:
    told = [architecture for flag, architecture in _FLAGS.items() if _truth(model.get(flag, False), f"model.{flag}")]
    told += filter(None, [_ARCHITECTURES.get(str(model.get("arch", "")).partition(":")[0])])
    if len(set(told)) > 1:
        raise OptionError(f"model: says {' and '.join(dict.fromkeys(told))}; expected one base model")
    return told[0] if told else None


def _found(path: str, folder: Path) -> str:
    here = beside(path, folder)
    return path if here is None else str(here)
