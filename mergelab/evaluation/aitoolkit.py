"""A generate configuration of AI Toolkit as a configuration of an evaluation: its prompts, drawn by its adapters."""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from mergelab.checks import is_number, short_repr
from mergelab.describing import short_name
from mergelab.engine.aligning import unique_names
from mergelab.errors import OptionError, SourceError
from mergelab.formats.aitoolkit import GenerateConfig, generate_config
from mergelab.formats.messages import about
from mergelab.formats.yaml_files import beside

_LOG = logging.getLogger(__name__)
_DTYPES = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "float": "float32"}
# Key of the generate section -> of an evaluation's generation; and what any pipeline that has it takes by name.
_GENERATION = {
    "sample_steps": "steps",
    "guidance_scale": "guidance",
    "width": "width",
    "height": "height",
    "neg": "negative_prompt",
    "negative_prompt": "negative_prompt",
}
_OPTIONS = {"prompt_2": "prompt_2", "neg_2": "negative_prompt_2", "guidance_rescale": "guidance_rescale"}
# What changes nothing here: how pictures are filed, in which order they are drawn.
_HARMLESS = ("prompts", "seed", "num_repeats", "shuffle", "prompt_file", "ext", "max_images", "max_random_per_prompt")
_FLAGS = re.compile(r"(?:^|\s)--[a-z].*", re.DOTALL)


def evaluation_content(path: Path) -> dict[str, Any]:
    """What an evaluation's own file would hold: pipeline, adapters, their merge, prompts, seeds, generation, memory.

    A seed that is missing or -1 leaves seeds to the evaluation; `low_vram` moves one component at a time to a GPU.
    Keys that are not given are left to the pipeline. What has no counterpart and is set is logged as a warning: the
    settings that a prompt has of its own ("--n blurry --w 512"), a seed for each prompt (`walk_seed`), quantisation.

    Raises:
        OptionError: there is no base model, or no prompt; there are two negative prompts; prompts or sizes are drawn
            at random.
        SourceError: the file with the prompts is not there.
    """
    config = generate_config(path)
    with about(path):
        generate, drawn = config.generate, _drawn_with(config)
        for key in ("random_prompts", "size_list"):
            if generate.get(key):
                raise OptionError(
                    f"generate.{key}: an evaluation draws the same pictures with every adapter; leave it out"
                )
        if not config.base:
            raise OptionError("the key 'model.name_or_path' is missing")
        content = {
            "pipeline": config.base,
            "loras": _loras(config),
            "merges": [{"method": "svd"}] if len(config.loras) > 1 else [],
            "prompts": _prompts(generate.get("prompts"), path.parent),
            "generation": _generation(drawn),
            **_seeds(generate),
        }
        if config.dtype is not None:
            content["dtype"] = _DTYPES.get(str(config.dtype), str(config.dtype))
    if config.device is not None:
        content["device"] = config.device
    if config.low_vram and torch.cuda.is_available() and config.device != "cpu":
        content["memory"] = {"offload": "model"}
    known = {*_GENERATION, *_OPTIONS, *_HARMLESS} - (generate.keys() - drawn.keys())
    unread = [*config.unread, *(f"generate.{key}" for key, value in generate.items() if value and key not in known)]
    if unread:
        _LOG.warning("%s: an evaluation makes nothing of %s", path, ", ".join(unread))
    return content


def _loras(config: GenerateConfig) -> list[dict[str, Any]]:
    names = unique_names([short_name(path) for path in config.loras])
    entries = zip(config.loras, config.weights, names)
    return [{"path": path, "weight": weight, "name": name} for path, weight, name in entries]


def _prompts(prompts: Any, folder: Path) -> list[str]:
    """As a list, or one in each line of a file."""
    if isinstance(prompts, str):
        file = beside(prompts, folder)
        if file is None:
            raise SourceError(f"generate.prompts: {prompts}: there is no such file; a single prompt stands in a list")
        prompts = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    if not isinstance(prompts, list) or not prompts or not all(isinstance(prompt, str) for prompt in prompts):
        raise OptionError(f"generate.prompts: expected a list of prompts, found {short_repr(prompts)}")
    texts = [_FLAGS.sub("", prompt).strip() for prompt in prompts]
    if not all(texts):
        raise OptionError(f"generate.prompts: expected words before the settings of a prompt, found {prompts!r}")
    for prompt, text in zip(prompts, texts):
        if _FLAGS.search(prompt):
            # AI Toolkit describes such settings, and its generate job strips their dashes and draws the rest as words.
            sentence = "generate.prompts: %r is drawn as %r; all prompts have the settings of the generate section"
            _LOG.warning(sentence, prompt, text)
    return texts


def _drawn_with(config: GenerateConfig) -> dict[str, Any]:
    """The generate section, without guidance where the base model has no input for it: a distilled FLUX."""
    ignored = "guidance_scale" if config.base == "miniature/flux" or "schnell" in config.base.lower() else None
    return {key: value for key, value in config.generate.items() if key != ignored}


def _generation(generate: Mapping[str, Any]) -> dict[str, Any]:
    short, long = generate.get("neg"), generate.get("negative_prompt")
    if short and long and short != long:
        raise OptionError("generate.neg and generate.negative_prompt differ; keep one of them")
    given = {key: value for key, value in generate.items() if value != ""}
    options = {name: given[key] for key, name in _OPTIONS.items() if key in given}
    return {name: given[key] for key, name in _GENERATION.items() if key in given} | {"options": options}


def _seeds(generate: Mapping[str, Any]) -> dict[str, Any]:
    seed, repeats = generate.get("seed", -1), generate.get("num_repeats", 1)
    for key, value in (("seed", seed), ("num_repeats", repeats)):
        if not isinstance(value, int) or isinstance(value, bool) or not is_number(value):
            raise OptionError(f"generate.{key}: expected a whole number, found {short_repr(value)}")
    if seed >= 0:
        return {"seeds": list(range(seed, seed + repeats))}
    return {"seeds": repeats} if repeats > 1 else {}
