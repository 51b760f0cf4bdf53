"""Module names of files -> canonical names, `<component>.<diffusers module path>`, by the names of one architecture.

The dialects differ in prefixes (`prefixes` takes them off), a separator ("." or "_") and the model whose modules they
name (diffusers' or the original one). The models' own names are in `architectures`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from mergelab.formats.architectures import text_encoders
from mergelab.formats.architectures.architecture import Architecture
from mergelab.formats.architectures.fused import OriginalModule
from mergelab.formats.prefixes import COMPONENTS, T5, strip

_THIRD = "text_encoder_3"


@dataclass(frozen=True)
class Located:
    """Where a module of a file is.

    Attributes:
        component: "unet", "transformer", "text_encoder", ... or "model" where the architecture is unknown.
        path: the module's path in the model that the file names.
        original: the module, if that is the original model, not diffusers'; it may hold several of diffusers'.
        known: False where a name could not be read; the path is then the name as it was.
    """

    component: str
    path: str
    original: OriginalModule | None = None
    known: bool = True

    @property
    def name(self) -> str | None:
        """The canonical name of the layer that the module is; None where it holds several, or in another order."""
        if self.original is None:
            return f"{self.component}.{self.path}"
        whole = len(self.original.parts) == 1 and not self.original.swapped
        return f"{self.component}.{self.original.parts[0]}" if whole else None

    @property
    def reading(self) -> tuple[str, OriginalModule, bool]:
        """What two architectures that read a name alike have in common, whatever their original models call it."""
        whole = self.original or OriginalModule(self.path, (self.path,))
        return self.component, replace(whole, path="", linear=False), self.known


def locate(
    modules: Iterable[str], architecture: Architecture | None, component: str | None = None
) -> dict[str, Located]:
    """Locate all modules of one file.

    Args:
        modules: their names in the file.
        architecture: by whose names they are read; None: no model's, so that they keep the names they have.
        component: of names that do not say, where something else tells it.
    """
    outer = f"{component}." if component in COMPONENTS else ""
    parsed = {module: _stripped(f"{outer}{module}", architecture) for module in modules}
    # kohya numbers text encoders; a third without a second is the second of a pipeline.
    second = "text_encoder_2" if all(part != "text_encoder_2" for part, _, _ in parsed.values()) else _THIRD
    t5 = (architecture and architecture.t5) or second
    has_third = architecture is not None and _THIRD in architecture.text_encoders

    def of(part: str | None, path: str) -> str | None:
        return t5 if (not outer and _is_t5(part, path)) or (part == _THIRD and not has_third) else part

    return {
        module: _located(of(part, path), path, known, architecture) for module, (part, path, known) in parsed.items()
    }


def is_module_of(architecture: Architecture, name: str) -> bool:
    """Whether a canonical name is one of this base model's.

    Example:
        >>> from mergelab.formats.architectures import ARCHITECTURES
        >>> names = ("unet.down_blocks.0.resnets.0.conv1", "unet.down_blocks.0.motion_modules.0.proj_in")
        >>> [is_module_of(ARCHITECTURES["sd15"], name) for name in names]
        [True, False]
    """
    component, _, path = name.partition(".")
    if naming := architecture.naming_of(component):
        return naming.place(path) is not None and naming.has(path)
    kind = text_encoders.kind(path)
    return kind is not None and architecture.text_encoders.get(component) == kind


def bare(module: str) -> str:
    """A module name without what older trainers put into it: the attention processor.

    Example:
        >>> bare("unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q")
        'unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q'
    """
    return re.sub(r"\.processor(?=\.)", "", module)


def _is_t5(component: str | None, path: str) -> bool:
    return component == T5 or text_encoders.kind(path) == "t5"


def _stripped(module: str, architecture: Architecture | None) -> tuple[str | None, str, bool]:
    """A name without prefixes, by the denoiser's names unless it is a module of something beside it."""
    for companion in architecture.companions if architecture else ():
        component, path, known = strip(module, companion)
        if companion.module(path) or (component == companion.component and companion.place(path)):
            return companion.component, path, known
    return strip(module, architecture.naming if architecture else None)


def _located(component: str | None, path: str, known: bool, architecture: Architecture | None) -> Located:
    naming = (architecture.naming_of(component or "") or architecture.naming) if architecture else None
    # Some trainers call every denoiser a UNet, and a folder may be named as another's.
    strange = (component or "").startswith("text_encoder") and not text_encoders.kind(path)
    if naming and known and (strange or component in (None, "unet", naming.component)):
        if module := naming.module(path):
            return Located(naming.component, path, module)
        path = naming.completed(path)
        if naming.place(path):
            return Located(naming.component, path)
    component = component or text_encoders.component_of(path) or "model"
    if component.startswith("text_encoder"):
        path = text_encoders.canonical(path)
    elif naming and component == "unet":
        component = naming.component
    return Located(component, path, known=known)
