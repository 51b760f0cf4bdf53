"""Module names of files -> canonical names, `<component>.<diffusers module path>`.

The dialects differ in prefixes (`prefixes` takes them off), a separator ("." or "_") and the model whose modules they
name (diffusers' or the original one). The models' own names are in `architectures`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from mergelab.formats.architectures import text_encoders
from mergelab.formats.architectures.architecture import Architecture
from mergelab.formats.architectures.fused import OriginalModule
from mergelab.formats.architectures.naming import Naming
from mergelab.formats.architectures.registry import NAMINGS
from mergelab.formats.prefixes import is_path_of, strip, unflatten

# The first step of a path -> the component, where it tells.
_ROOTS = {root: naming.component for naming in NAMINGS for root in naming.telling_roots}
# First steps of original paths under which every module is in a table.
_CLOSED_ROOTS = (
    frozenset[str]()
    .union(*(naming.block_roots for naming in NAMINGS))
    .difference(*(naming.canonical_roots for naming in NAMINGS))
)


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
    def is_original(self) -> bool:
        """Whether the file has the names of the original model."""
        return self.original is not None


def locate(modules: Iterable[str]) -> dict[str, Located]:
    """Locate all modules of one file; a name that says nothing of its component follows those that do."""
    parsed = {module: strip(module) for module in modules}
    # kohya numbers text encoders; the T5 of FLUX is te3, without a te2, and the second encoder of diffusers' pipeline.
    if not any(component == "text_encoder_2" for component, _, _ in parsed.values()):
        second = {"text_encoder_3": "text_encoder_2"}
        parsed = {m: (second.get(c or "", c), path, known) for m, (c, path, known) in parsed.items()}
    paths = [path for _, path, known in parsed.values() if known]
    # Two models may have a name in common: the model counts that knows the most of the file's.
    namings = sorted(NAMINGS, key=lambda naming: -sum(map(naming.knows, paths)))
    strong = {_component_of(path, namings) for path in paths} - {None}
    fallback = next(iter(strong)) if len(strong) == 1 else None
    return {module: _located(*parts, fallback, namings) for module, parts in parsed.items()}


def is_module_of(architecture: Architecture, name: str) -> bool:
    """Whether a canonical name is one of this base model's.

    Example:
        >>> from mergelab.formats.architectures import ARCHITECTURES
        >>> names = ("unet.down_blocks.0.resnets.0.conv1", "unet.down_blocks.0.motion_modules.0.proj_in")
        >>> [is_module_of(ARCHITECTURES["sd15"], name) for name in names]
        [True, False]
    """
    component, _, path = name.partition(".")
    if component == architecture.denoiser:
        return architecture.naming.place(path) is not None and is_path_of(architecture.naming, path)
    return component.startswith("text_encoder") and text_encoders.has(path)


def _component_of(path: str, namings: Iterable[Naming]) -> str | None:
    root = path.partition(".")[0]
    by_path = (naming.component for naming in namings if root in naming.common_roots and naming.knows(path))
    return text_encoders.component_of(path) or _ROOTS.get(root) or next(by_path, None)


def _located(component: str | None, path: str, known: bool, fallback: str | None, namings: Iterable[Naming]) -> Located:
    if not known:
        return Located(component or "model", path, known=False)
    # Some trainers call every denoiser a UNet.
    fitting = (naming for naming in namings if component in (None, "unet", naming.component) and naming.knows(path))
    if (naming := next(fitting, None)) and (module := naming.module(path)):
        return Located(naming.component, path, module)
    root = path.partition(".")[0]
    if root in _CLOSED_ROOTS:
        return Located(component or "model", path, known=False)
    if component == "unet":
        component = next((naming.component for naming in NAMINGS if root in naming.canonical_roots), component)
    component = component or _component_of(path, namings) or fallback or "model"
    if component.startswith("text_encoder"):
        path = text_encoders.canonical(path)
    for naming in NAMINGS:
        path = naming.completed(path) if naming.component == component else path
    return Located(component, path)


def flatten(path: str) -> str | None:
    """A path with underscores for dots, if that can be read back; else None."""
    flat = path.replace(".", "_")
    read = unflatten(flat)
    return flat if read == path or (read is None and "." not in path) else None


def bare(module: str) -> str:
    """A module name without what older trainers put into it: the attention processor.

    Example:
        >>> bare("unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q")
        'unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_q'
    """
    return re.sub(r"\.processor(?=\.)", "", module)
