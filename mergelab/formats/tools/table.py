"""The table of tools. Its facts are read in the tools' own loaders; the names stand in the tests once more, by hand."""

from __future__ import annotations

from mergelab.errors import OptionError
from mergelab.formats.layout import Layout
from mergelab.formats.tools.families import FLUX2, LTX_VIDEO, SD3, UNETS, WAN
from mergelab.formats.tools.lacks import (
    ALL_IF_ATTENTION,
    ALL_IF_MORE,
    ALL_IF_T5,
    ALL_IF_TEXT,
    ALPHAS,
    BIASES,
    EMBEDDINGS,
    FLUX_LAST,
    FLUX_REST,
    FLUX_REST_IF_ASKED,
    NORMS,
    PROJECTION,
    SAVED,
    T5,
    TEXT,
    TEXT_IF_TRAINED,
    UNET_ATTENTION,
    UNET_ENDS,
    UNET_REST,
)
from mergelab.formats.tools.pipelines import PIPELINES
from mergelab.formats.tools.tool import Tool, Way

_KOHYA, _COMFY, _DIFFUSERS, _PEFT = (Layout(format) for format in ("kohya", "comfy", "diffusers", "peft"))
_T5_SECOND = Layout("kohya", t5="lora_te2")

_COMFY_READ = {"comfy": (EMBEDDINGS,), "kohya": (EMBEDDINGS,)}
_COMFY_ANY = Way(_COMFY, (EMBEDDINGS, SAVED), _COMFY_READ | {"diffusers": ()})
_COMFY_OWN_NAMES = Way(_COMFY, _COMFY_ANY.lacks, _COMFY_READ)
_COMFY_WITH_T5 = Way(_COMFY, _COMFY_ANY.lacks, _COMFY_READ | {"diffusers": (T5,)})
_COMFY_UNET = Way(_COMFY, _COMFY_ANY.lacks, _COMFY_READ | {"diffusers": (UNET_ATTENTION, PROJECTION)})
_COMFYUI = Tool(
    "comfyui",
    "ComfyUI",
    {
        **dict.fromkeys(UNETS, _COMFY_UNET),
        **dict.fromkeys(("flux", *SD3), _COMFY_WITH_T5),
        **dict.fromkeys((*WAN, "hunyuan-video", *LTX_VIDEO, "ltx-2"), _COMFY_OWN_NAMES),
    },
    others=_COMFY_ANY,
)
# Forge leaves a file with more than twelve tensors of no use aside as a whole.
_FORGE_LACKS = (NORMS, EMBEDDINGS, SAVED)
_FORGE_READS = {"kohya": (EMBEDDINGS, NORMS), "comfy": (ALL_IF_TEXT,)}
_FORGE = Tool(
    "forge",
    "Forge",
    {
        **dict.fromkeys(UNETS, Way(_KOHYA, _FORGE_LACKS, _FORGE_READS | {"diffusers": (ALL_IF_ATTENTION,)})),
        "flux": Way(_KOHYA, _FORGE_LACKS, _FORGE_READS | {"diffusers": (ALL_IF_T5,)}),
    },
)
_A1111 = Tool(
    "a1111",
    "A1111",
    dict.fromkeys(UNETS, Way(_KOHYA, (PROJECTION, BIASES, NORMS, SAVED), {"kohya": (PROJECTION, BIASES)})),
)
_KOHYA_LACKS = (PROJECTION, BIASES, NORMS, EMBEDDINGS, SAVED)
_SD_SCRIPTS = Tool(
    "sd-scripts",
    "sd-scripts",
    {
        **dict.fromkeys(
            UNETS, Way(_KOHYA, (UNET_ENDS, *_KOHYA_LACKS), {"kohya": (UNET_ENDS, PROJECTION, BIASES, EMBEDDINGS)})
        ),
        "flux": Way(_KOHYA, (FLUX_LAST, *_KOHYA_LACKS), {"kohya": (FLUX_LAST, BIASES, NORMS, EMBEDDINGS)}),
        **dict.fromkeys((*SD3, "chroma", "lumina2", "anima"), Way(_KOHYA, _KOHYA_LACKS, {"kohya": (PROJECTION,)})),
    },
)
_NETWORK = "its network needs rank {rank} at least, it cuts off what is above its own"
_NO_EXTRAS = (BIASES, NORMS, EMBEDDINGS, SAVED)
_AS_DIFFUSERS_NAMES = Layout("kohya", original_names=False, alpha_is_rank=True)
_ORIGINAL = Way(_COMFY, (TEXT, *_NO_EXTRAS), {"comfy": (TEXT,)}, _NETWORK)
_NAMED_ALIKE = Way(Layout("comfy", original_names=False), (TEXT, *_NO_EXTRAS), {"comfy": (TEXT,)}, _NETWORK)
_UNET_IN_AITOOLKIT = Way(
    _AS_DIFFUSERS_NAMES, (UNET_REST, TEXT_IF_TRAINED, *_NO_EXTRAS), {"kohya": (UNET_REST, ALPHAS)}, _NETWORK
)
_AITOOLKIT = Tool(
    "aitoolkit",
    "AI-toolkit",
    {
        "sd15": _UNET_IN_AITOOLKIT,
        "sd2": _UNET_IN_AITOOLKIT,
        "sdxl": Way(_AS_DIFFUSERS_NAMES, _UNET_IN_AITOOLKIT.lacks, {}, _NETWORK),
        "flux": Way(
            _DIFFUSERS,
            (TEXT, FLUX_REST_IF_ASKED, *_NO_EXTRAS),
            {"diffusers": (TEXT, FLUX_REST)},
            _NETWORK,
        ),
        **dict.fromkeys(("chroma", *FLUX2, "krea2", *WAN, "ltx-2", "anima"), _ORIGINAL),
        **dict.fromkeys(("qwen-image", "z-image", "hidream"), _NAMED_ALIKE),
        **dict.fromkeys(
            (*SD3, "lumina2"),
            Way(_DIFFUSERS, (TEXT, *_NO_EXTRAS), {"diffusers": (TEXT,)}, _NETWORK),
        ),
    },
)
# OneTrainer refuses a file with a tensor that it does not know.
_ONE_LACKS = (BIASES, NORMS, SAVED)
_ONETRAINER = Tool(
    "onetrainer",
    "OneTrainer",
    {
        **dict.fromkeys(UNETS, Way(_KOHYA, _ONE_LACKS, {"kohya": (), "diffusers": (), "comfy": ()})),
        "flux": Way(_T5_SECOND, _ONE_LACKS, {"kohya": (ALL_IF_T5,), "diffusers": (), "comfy": ()}),
        **dict.fromkeys(
            (*SD3, "chroma", *FLUX2, "qwen-image", "z-image", "krea2", "hunyuan-video", "hidream", "anima"),
            Way(_DIFFUSERS, (*_ONE_LACKS, EMBEDDINGS), {"diffusers": ()}),
        ),
    },
)
# InvokeAI does not recognise a FLUX file with any other layer, and no UNet's with another tensor.
_INVOKEAI = Tool(
    "invokeai",
    "InvokeAI",
    {
        **dict.fromkeys(UNETS, Way(_KOHYA, _NO_EXTRAS, {"kohya": _NO_EXTRAS})),
        "flux": Way(
            _T5_SECOND,
            (FLUX_REST, *_NO_EXTRAS),
            {
                "kohya": (ALL_IF_MORE,),
                "diffusers": (ALL_IF_TEXT,),
            },
        ),
    },
)
_NUNCHAKU_LACKS = (TEXT, EMBEDDINGS, SAVED)
_NUNCHAKU = Tool(
    "nunchaku",
    "nunchaku",
    {
        "flux": Way(
            _DIFFUSERS,
            _NUNCHAKU_LACKS,
            {"diffusers": (TEXT,), "kohya": (TEXT, FLUX_REST)},
            completed=True,
        )
    },
)
PACKED = Tool("nunchaku", "nunchaku", {"flux": Way(Layout("nunchaku"), _NUNCHAKU_LACKS)})
"""nunchaku's own format, for one quantised model: no tool's default, and not in the table."""
_FOLDERS = Way(_PEFT, (EMBEDDINGS,), {"peft": ()})
_PEFT_TOOL = Tool("peft", "PEFT", {}, others=_FOLDERS, unknown=_FOLDERS)

TOOLS: dict[str, Tool] = {
    tool.name: tool
    for tool in (
        *(_COMFYUI, _FORGE, _A1111, _SD_SCRIPTS, _AITOOLKIT, _ONETRAINER, _INVOKEAI),
        *(PIPELINES, _NUNCHAKU, _PEFT_TOOL),
    )
}


def check_tool(name: object) -> Tool:
    """The tool of this name, or raise `OptionError`."""
    if not isinstance(name, str) or name not in TOOLS:
        raise OptionError(f"for_={name!r}: expected one of {', '.join(map(repr, TOOLS))}")
    return TOOLS[name]
