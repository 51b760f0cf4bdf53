"""The table of architectures: a new one is a file beside this one and a line here."""

from __future__ import annotations

from pkgutil import resolve_name

from mergelab.formats.architectures.architecture import Architecture
from mergelab.formats.architectures.naming import Naming

_TABLE = (
    "mergelab.formats.architectures.sd15:SD15",
    "mergelab.formats.architectures.sd2:SD2",
    "mergelab.formats.architectures.sdxl:SDXL",
    "mergelab.formats.architectures.flux:FLUX",
    "mergelab.formats.architectures.chroma:CHROMA",
    "mergelab.formats.architectures.flux2:FLUX2_DEV",
    "mergelab.formats.architectures.flux2:FLUX2_KLEIN_9B",
    "mergelab.formats.architectures.flux2:FLUX2_KLEIN_4B",
    "mergelab.formats.architectures.qwen_image:QWEN_IMAGE",
    "mergelab.formats.architectures.sd3:SD3",
    "mergelab.formats.architectures.sd3:SD35_MEDIUM",
    "mergelab.formats.architectures.sd3:SD35_LARGE",
    "mergelab.formats.architectures.hunyuan_video:HUNYUAN_VIDEO",
    "mergelab.formats.architectures.z_image:Z_IMAGE",
    "mergelab.formats.architectures.lumina2:LUMINA2",
    "mergelab.formats.architectures.krea2:KREA2",
    "mergelab.formats.architectures.wan:WAN_14B",
    "mergelab.formats.architectures.wan:WAN_5B",
    "mergelab.formats.architectures.wan:WAN_1_3B",
    "mergelab.formats.architectures.ltx:LTX2",
    "mergelab.formats.architectures.ltx:LTX_VIDEO",
    "mergelab.formats.architectures.ltx:LTX_VIDEO_13B",
    "mergelab.formats.architectures.hidream:HIDREAM",
    "mergelab.formats.architectures.anima:ANIMA",
)
ARCHITECTURES: dict[str, Architecture] = {known.id: known for known in map(resolve_name, _TABLE)}

NAMINGS: tuple[Naming, ...] = tuple(dict.fromkeys(architecture.naming for architecture in ARCHITECTURES.values()))
"""How the modules of denoisers are named, each way once."""
