"""The table of architectures: a new one is a file beside this one and a line here."""

from __future__ import annotations

from mergelab.formats.architectures.architecture import Architecture
from mergelab.formats.architectures.flux import FLUX
from mergelab.formats.architectures.naming import Naming
from mergelab.formats.architectures.sd2 import SD2
from mergelab.formats.architectures.sd15 import SD15
from mergelab.formats.architectures.sdxl import SDXL

ARCHITECTURES: dict[str, Architecture] = {
    architecture.id: architecture
    for architecture in (
        SD15,
        SD2,
        SDXL,
        FLUX,
    )
}

NAMINGS: tuple[Naming, ...] = tuple(dict.fromkeys(architecture.naming for architecture in ARCHITECTURES.values()))
"""How the modules of denoisers are named, each way once."""


def architecture_of(id: str | None, component: str) -> Architecture:
    """The architecture by whose names a component is written.

    Where the base model is not known, that is the first in the table with such a denoiser, and for everything else
    the first of all.
    """
    known = ARCHITECTURES.get(id or "")
    with_denoiser = [a for a in ARCHITECTURES.values() if a.denoiser == component]
    if known is None or (with_denoiser and known not in with_denoiser):
        return next(iter(with_denoiser or ARCHITECTURES.values()))
    return known
