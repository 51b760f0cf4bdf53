"""What mergelab knows of a family of base models, as data: `Architecture`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mergelab.formats.architectures.evidence import Evidence
from mergelab.formats.architectures.naming import Naming

Rule = Callable[[Evidence], bool]

PROJECTED = frozenset({"text_encoder_2"})
"""Text encoders that are a CLIPTextModelWithProjection in most pipelines that have such a component."""


def never(evidence: Evidence) -> bool:
    """The rule that says no."""
    return False


@dataclass(frozen=True)
class Kohya:
    """How kohya's tools know a family.

    Attributes:
        text_encoders: component -> prefix of its modules' flat names.
        network_module: `ss_network_module`.
        original_names: whether the denoiser's modules are named as in the original model, fused ones as one.
    """

    text_encoders: Mapping[str, str]
    network_module: str = "networks.lora"
    original_names: bool = True


@dataclass(frozen=True, eq=False)
class Architecture:
    """One family of base models; all that mergelab knows of it, and the only place that does.

    How a file is recognised: it is read by the names of every architecture, and those stay that know the most of its
    modules. Of these, three rules are asked in this order, each with the `Evidence` of the architecture's own reading:
    what `proves` it needs no header, nor do shapes that one published model alone has; what a header says is believed
    where `fits` finds nothing against it; what `suggests` it decides where the header is silent, too. A rule counts
    where one architecture alone answers yes; between two that are proven, the header decides.

    Attributes:
        id: "sd15", ...: the name in `Adapter.architecture`.
        title: as people write it.
        denoiser: the component that draws, "unet" or "transformer".
        naming: the denoiser's modules, here and in the original model.
        text_encoders: component -> its kind, "clip" or "t5".
        companions: the modules of what diffusers has as a component of its own and the original model within.
        proves, fits, suggests: the rules.
        header: a pattern of modelspec's architecture or kohya's base model version, in lower case.
        modelspec: `modelspec.architecture` of an adapter.
        base_version: `ss_base_model_version`.
        v2: `ss_v2`.
        kohya: None where kohya's format does not exist.
        respell: turns a key that only trainers of this family write into a usual one.
        model_class, model_config: the diffusers class of the denoiser and the published configuration that sets its
            shapes, the source of its true modules.
        any_size: whether models of other sizes count, too; else a size that is not published needs a header.
        repository: the model on the Hugging Face Hub, in diffusers' folders, that adapters of the family are usually
            for; "" where there are several.
        task: what the Hub calls its pipelines.
        projected: text encoders of the class CLIPTextModelWithProjection.
    """

    id: str
    title: str
    denoiser: str
    naming: Naming
    proves: Rule
    fits: Rule
    header: str
    modelspec: str
    base_version: str
    kohya: Kohya | None
    model_class: str
    model_config: Mapping[str, Any] = field(repr=False)
    text_encoders: Mapping[str, str] = field(default_factory=dict)
    suggests: Rule = never
    v2: bool = False
    companions: tuple[Naming, ...] = ()
    respell: Callable[[str], str] = str
    projected: frozenset[str] = PROJECTED
    any_size: bool = False
    repository: str = ""
    task: str = "text-to-image"

    def naming_of(self, component: str) -> Naming | None:
        """The names of a component's modules; None for text encoders, which have one name in all models."""
        return next((naming for naming in (self.naming, *self.companions) if naming.component == component), None)

    @property
    def t5(self) -> str | None:
        """The component that is a T5."""
        return next((component for component, kind in self.text_encoders.items() if kind == "t5"), None)

    @property
    def input_layer(self) -> str | None:
        """The canonical name of the layer that reads the latents, which a Control adapter may widen."""
        return self.naming.input_name
