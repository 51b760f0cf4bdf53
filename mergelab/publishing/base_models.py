"""Which model on the Hub an adapter is for, and who says so."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from mergelab import miniature
from mergelab.errors import OptionError
from mergelab.formats.architectures.architecture import Architecture
from mergelab.formats.architectures.published import is_published
from mergelab.formats.architectures.registry import ARCHITECTURES
from mergelab.formats.fetching.hub import REPO
from mergelab.layer import AdapterData

_UNKNOWN = "model"
"""The component of layers that no pipeline has, of a language model, say."""


@dataclass(frozen=True)
class BaseModel:
    """A base model.

    Attributes:
        name: on the Hub, or "miniature/sdxl"; "" where it is not known.
        title: as people write it.
        task: what the Hub calls its pipelines, "" for what is no pipeline's.
        is_usual: whether nobody named it, and it is what such adapters are usually for.
        note: what a user should know about the choice.
    """

    name: str = ""
    title: str = "an unknown base model"
    task: str = "text-to-image"
    is_usual: bool = False
    note: str = ""

    @property
    def repository(self) -> str | None:
        """Its name on the Hub."""
        return self.name if self.name and not self.miniature else None

    @property
    def miniature(self) -> str | None:
        """Its name among the small pipelines that ship with the package."""
        return self.name.removeprefix(miniature.PREFIX) if self.name.startswith(miniature.PREFIX) else None


def check_base_model(name: str | None) -> str | None:
    """Raise `OptionError` unless it can be the name of a model on the Hub."""
    if name is not None and not is_hub_name(name):
        raise OptionError(f"base_model={name!r}: expected a name on the Hugging Face Hub, such as 'user/model'")
    return name


def is_hub_name(name: str) -> bool:
    """Whether it can be the name of a repository on the Hub.

    Example:
        >>> is_hub_name("black-forest-labs/FLUX.1-dev"), is_hub_name("/models/flux"), is_hub_name("flux")
        (True, False, False)
    """
    return re.fullmatch(REPO, name, re.ASCII) is not None


def base_model_of(data: AdapterData, given: str | None = None, drawn_with: str | None = None) -> BaseModel:
    """The base model: the one that is named, else that of the evaluation, else the usual one of the family.

    A family has many models. The usual one is named only if layers and header have nothing against it.

    Example:
        >>> import torch
        >>> from mergelab.layer import LoraLayer
        >>> layer = LoraLayer(torch.ones(1, 2048), torch.ones(640, 1))
        >>> name = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"
        >>> base_model_of(AdapterData({name: layer}, architecture="sdxl")).name
        'stabilityai/stable-diffusion-xl-base-1.0'
        >>> base_model_of(AdapterData({name: layer}, {}, "sdxl", {"ss_base_model_version": "pony"})).note
        "the card names no base model: the header says 'pony', which has no name on the Hub; base_model= ..."
    """
    known = ARCHITECTURES.get(data.architecture or "")
    title, task = (known.title, known.task) if known else (BaseModel.title, BaseModel.task)
    if {name.partition(".")[0] for name in data.layers} == {_UNKNOWN}:
        task = ""
    if name := given or drawn_with:
        return BaseModel(name, title if known else name, task)
    why = _against(data, known)
    if known is None or why:
        return BaseModel(
            "", title, task, note=f"the card names no base model: {why}; base_model= (--base-model) names it"
        )
    note = (
        f"the card names {known.repository}, the usual base model of {title}; base_model= (--base-model) names another"
    )
    return BaseModel(known.repository, title, task, is_usual=True, note=note)


def _against(data: AdapterData, known: Architecture | None) -> str:
    """Why the usual base model of the family is not named."""
    if known is None:
        return "the file does not tell"
    if not known.repository:
        return f"{known.title} has several"
    if strange := _strange_word(data.metadata, known):
        return f"the header says {strange!r}, which has no name on the Hub"
    if not _has_its_sizes(data, known):
        return f"the layers have other sizes than those of {known.repository}"
    return ""


def _strange_word(header: Mapping[str, str], known: Architecture) -> str:
    """A finer word for the base model than that of the family ("pony"), "" where there is none."""
    for key in ("ss_base_model_version", "modelspec.architecture"):
        word = header.get(key, "").removesuffix("/lora")
        usual = [_bare(text) for text in (known.id, known.title, known.base_version, known.modelspec)]
        rests = (_bare(word).removeprefix(text) for text in usual if _bare(word).startswith(text))
        if word and not any(rest == "" or rest.isdigit() for rest in rests):
            return word
    return ""


def _bare(text: str) -> str:
    return re.sub(r"[^a-z0-9]", "", text.removesuffix("/lora").lower())


def _has_its_sizes(data: AdapterData, known: Architecture) -> bool:
    """Whether the layers have the sizes of the published model, as far as these tell."""
    prefix = f"{known.denoiser}."
    shapes = {n.removeprefix(prefix): layer.shape for n, layer in data.layers.items() if n.startswith(prefix)}
    inside = (known.input_layer or "").partition(".")[2]
    width = known.model_config.get("cross_attention_dim") if known.denoiser == "unet" else None
    if width:
        return all(shape[1] == width for path, shape in shapes.items() if re.search(r"attn2\.to_[kv]$", path))
    return is_published(known.id, shapes, inside) is not False
