"""diffusers in the table of tools: what its pipelines (0.42) read of a file in each format, as measured.

Its converters raise on a name that they do not know, so that a single layer may cost the whole file.
"""

from __future__ import annotations

from mergelab.formats.layout import Layout
from mergelab.formats.tools.families import FLUX2, LTX_VIDEO, SD3, UNETS, WAN
from mergelab.formats.tools.lacks import BIASES, EMBEDDINGS, FLUX_REST, SAVED, T5
from mergelab.formats.tools.tool import EVERYTHING, Lack, Tool, Way

_OWN = Layout("diffusers")
_LACKS = (T5, EMBEDDINGS, SAVED)
# Of any format that is not named the pipelines read nothing.
_ALWAYS = {"diffusers": (T5,), "peft": (EVERYTHING,)}

_NORM, _BIAS = r"\.weight$", BIASES.pattern
_EXTRAS = Lack("biases and norms", f"{_NORM}|{_BIAS}")
_ALL_IF_EXTRAS = Lack("everything, if it has biases or norms", _EXTRAS.pattern)
_ALL_IF_NORMS = Lack("everything, if it has norms", _NORM)
_ALL_IF_NETWORK = Lack(
    "everything, if it has the distilled guidance layer", r"^transformer\.distilled_guidance_layer\."
)
_MODULATIONS = Lack(
    "the modulations of blocks, the last modulation, guidance",
    r"^transformer\.((double|single)_stream_modulation\w*|norm_out|time_guidance_embed\.guidance_embedder)\.",
)
_LAST_MODULATION = Lack("the last modulation, of which it swaps shift and scale", r"^transformer\.norm_out\.")
_ALL_IF_REFINER = Lack("everything, if it has q, k or v of the text refiner", r"\.refiner_blocks\.\d+\.attn\.to_[qkv]$")
_ALL_WITHOUT_IMAGE = Lack(
    "everything, for want of q, k and v of the image",
    "",
    unless=r"^transformer\.transformer_blocks\.\d+\.attn\.to_[qkv]$",
)
_ALL_IF_PATCHES = Lack("everything, if it has the patch embedding", r"^transformer\.patch_embedding$")
_ALL_WITHOUT_BLOCKS = Lack("everything, for want of blocks", "", unless=r"^transformer\.blocks\.")
_ALL_UNLESS_WHOLE = Lack("everything, unless it has all layers of the blocks and no others", r"^transformer\.")
_FIRST_LAYERS = Lack("the first layer and the embedding of time", r"^transformer\.(proj_in$|time_embed\.)")


def _way(kohya: tuple[Lack, ...] = (EVERYTHING,), comfy: tuple[Lack, ...] = (EVERYTHING,)) -> Way:
    """What is not read of a file in kohya's format and in ComfyUI's."""
    return Way(_OWN, _LACKS, _ALWAYS | {"kohya": kohya, "comfy": comfy})


_NO_EXTRAS = _way(kohya=(_ALL_IF_EXTRAS,), comfy=(_ALL_IF_EXTRAS,))
_COMFY_ONLY = _way(comfy=(_EXTRAS,))
PIPELINES = Tool(
    "diffusers",
    "diffusers",
    {
        **dict.fromkeys(
            UNETS,
            Way(_OWN, (EMBEDDINGS, SAVED), {"kohya": (), "diffusers": (), "peft": (EVERYTHING,)}),
        ),
        "flux": _way(kohya=(T5, FLUX_REST, BIASES, _ALL_IF_NORMS)),
        "chroma": _way(kohya=(T5, FLUX_REST, BIASES, _ALL_IF_NORMS, _ALL_IF_NETWORK)),
        **dict.fromkeys(
            FLUX2,
            _way(kohya=(_MODULATIONS, _EXTRAS), comfy=(_LAST_MODULATION, _ALL_IF_EXTRAS)),
        ),
        **dict.fromkeys(("qwen-image", "z-image"), _NO_EXTRAS),
        **dict.fromkeys(SD3, _way()),
        "hunyuan-video": _way(comfy=(_ALL_WITHOUT_IMAGE, _ALL_IF_REFINER, _LAST_MODULATION, _EXTRAS)),
        "lumina2": _way(comfy=(_ALL_UNLESS_WHOLE, _ALL_IF_EXTRAS)),
        "krea2": _way(comfy=(_ALL_IF_EXTRAS,)),
        **dict.fromkeys(
            WAN,
            _way(
                kohya=(_ALL_UNLESS_WHOLE, _ALL_IF_EXTRAS), comfy=(_ALL_IF_PATCHES, _ALL_WITHOUT_BLOCKS, _ALL_IF_NORMS)
            ),
        ),
        **dict.fromkeys(("ltx-2", "hidream", "anima"), _COMFY_ONLY),
        **dict.fromkeys(LTX_VIDEO, _way(comfy=(_FIRST_LAYERS, _EXTRAS))),
    },
    others=Way(_OWN, _LACKS, _ALWAYS),
    unknown=Way(_OWN, (EMBEDDINGS, SAVED), _ALWAYS),
)
