"""The format "same": the dialect the inputs came in, where they agree."""

from __future__ import annotations

from torch import Tensor

from mergelab.errors import FormatError
from mergelab.formats.architectures.registry import ARCHITECTURES
from mergelab.formats.layout import Layout
from mergelab.formats.peft import has_name_in_diffusers
from mergelab.formats.writers import FACTOR_SUFFIXES, SAY_WHICH, no_place, with_alpha
from mergelab.layer import BIAS_SUFFIX, NORM_SUFFIX, AdapterData, owner_of


def same_format(data: AdapterData) -> str:
    """The format that "same" stands for; "same" itself where the names of an unknown model are kept as they were.

    Raises:
        FormatError: the inputs' dialects differ, or they came from no file, and the base model is unknown.
    """
    if data.dialect == "peft":
        return "peft"
    if ARCHITECTURES.get(data.architecture or ""):
        return data.dialect or "diffusers"
    if data.layers and all(name in data.spelling for name in data.layers):
        return "same"
    if data.dialect in (None, "diffusers") and all(has_name_in_diffusers(data, name) for name in data.layers):
        return "diffusers"
    if data.dialect:
        raise FormatError(
            f"layer {next(iter(data.layers), '')}: the base model is unknown, and the file has modules that hold "
            f"several of its layers: {SAY_WHICH}"
        )
    raise FormatError(
        f"layer {next(iter(data.layers), '')}: the base model is unknown, and the inputs name its modules in different "
        "ways, or are no files: there is no dialect to keep; write it as format='peft'"
    )


def as_spelt(data: AdapterData, layout: Layout) -> dict[str, Tensor]:
    """The tensors under the names of modules that their file had, with kohya's ends where that file had them."""
    down, up = FACTOR_SUFFIXES[0 if data.dialect == "kohya" else 1]
    has_alphas = data.dialect in ("kohya", "comfy")
    tensors: dict[str, Tensor] = {}
    for name, layer in data.layers.items():
        module = data.spelling[name]
        written, alpha = with_alpha(layer, alpha_is_rank=not has_alphas)
        tensors[f"{module}{down}"], tensors[f"{module}{up}"] = written.lora_A, written.lora_B
        if has_alphas:
            tensors[f"{module}.alpha"] = alpha
    for key, tensor in data.extras.items():
        name = owner_of(key)
        if name == key or name not in data.spelling:
            raise no_place(key, "same")
        end = ".diff" if key.endswith(NORM_SUFFIX) else ".diff_b" if has_alphas else BIAS_SUFFIX
        tensors[f"{data.spelling[name]}{end}"] = tensor
    return tensors
