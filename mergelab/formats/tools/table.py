"""The table of tools. Its facts are read in the tools' own loaders; the names stand in the tests once more, by hand."""

from __future__ import annotations

from mergelab.errors import OptionError
from mergelab.formats.layout import Layout
from mergelab.formats.tools.tool import Lack, Tool, Way

# What tools have no place for. Names of layers are canonical, and so are those of extras.
_T5 = Lack("T5", r"^text_encoder(_\d)?\.(encoder\.block\.|shared\b)")
_TEXT = Lack("text encoders", r"^text_encoder")
_TEXT_IF_TRAINED = Lack("text encoders, unless its network trains them", r"^text_encoder", kept=True)
_PROJECTION = Lack("the text projection", r"^text_encoder(_\d)?\.text_projection\b")
_UNET_ENDS = Lack("conv_in, conv_out, time_embedding, add_embedding", r"^unet\.(conv_(in|out)|(time|add)_embedding)\b")
_UNET_REST = Lack(
    "layers outside the attention blocks, unless its network has them", r"^unet\.(?!.*\battentions\.)", kept=True
)
_UNET_ATTENTION = Lack("q, k, v and out of all attention", r"^unet\..*\.attn\d\.to_(q|k|v|out)\b")
_ALL_IF_ATTENTION = Lack("everything, if it has q, k, v or out", _UNET_ATTENTION.pattern)
_ALL_IF_T5 = Lack("everything, if it has T5", _T5.pattern)
_ALL_IF_TEXT = Lack("everything, if it has text encoders", _TEXT.pattern)
_FLUX_REST = Lack("layers outside the blocks", r"^transformer\.(?!(single_)?transformer_blocks\.)")
_FLUX_REST_IF_ASKED = Lack(f"{_FLUX_REST.what}, unless its network has them", _FLUX_REST.pattern, kept=True)
_FLUX_LAST = Lack("the final layer", r"^transformer\.(norm_out\.linear|proj_out)\b")
_BIASES = Lack("biases", r"\.lora_B\.bias$")
_NORMS = Lack("norms", r"^transformer\..*\bnorm_(added_)?[qk]\.weight$")
_EMBEDDINGS = Lack("embeddings", r"^bundle_emb\.")
_ALPHAS = Lack("alphas other than the rank", r"^unet\.")
_SAVED = Lack("whole modules and rows of tokens", r"\.(modules_to_save|token_adapter)\.")
_KOHYA, _COMFY, _DIFFUSERS, _PEFT = (Layout(format) for format in ("kohya", "comfy", "diffusers", "peft"))
_T5_SECOND = Layout("kohya", t5="lora_te2")

_UNETS = ("sd15", "sd2", "sdxl")
_SD3 = ("sd3", "sd35-medium", "sd35-large")
_FLUX2 = ("flux2-dev", "flux2-klein-9b", "flux2-klein-4b")
_WAN = ("wan-1.3b", "wan-5b", "wan-14b")

_COMFY_READ = {"comfy": (_EMBEDDINGS,), "kohya": (_EMBEDDINGS,)}
_COMFY_ANY = Way(_COMFY, (_EMBEDDINGS, _SAVED), _COMFY_READ | {"diffusers": ()})
_COMFY_OWN_NAMES = Way(_COMFY, _COMFY_ANY.lacks, _COMFY_READ)
_COMFY_WITH_T5 = Way(_COMFY, _COMFY_ANY.lacks, _COMFY_READ | {"diffusers": (_T5,)})
_COMFY_UNET = Way(_COMFY, _COMFY_ANY.lacks, _COMFY_READ | {"diffusers": (_UNET_ATTENTION, _PROJECTION)})
_COMFYUI = Tool(
    "comfyui",
    "ComfyUI",
    {
        **dict.fromkeys(_UNETS, _COMFY_UNET),
        **dict.fromkeys(("flux", *_SD3), _COMFY_WITH_T5),
        **dict.fromkeys((*_WAN, "hunyuan-video", "ltx-video", "ltx-video-13b", "ltx-2"), _COMFY_OWN_NAMES),
    },
    others=_COMFY_ANY,
)
# Forge leaves a file with more than twelve tensors of no use aside as a whole.
_FORGE_LACKS = (_NORMS, _EMBEDDINGS, _SAVED)
_FORGE_READS = {"kohya": (_EMBEDDINGS, _NORMS), "comfy": (_ALL_IF_TEXT,)}
_FORGE = Tool(
    "forge",
    "Forge",
    {
        **dict.fromkeys(_UNETS, Way(_KOHYA, _FORGE_LACKS, _FORGE_READS | {"diffusers": (_ALL_IF_ATTENTION,)})),
        "flux": Way(_KOHYA, _FORGE_LACKS, _FORGE_READS | {"diffusers": (_ALL_IF_T5,)}),
    },
)
_A1111 = Tool(
    "a1111",
    "A1111",
    dict.fromkeys(_UNETS, Way(_KOHYA, (_PROJECTION, _BIASES, _NORMS, _SAVED), {"kohya": (_PROJECTION, _BIASES)})),
)
_KOHYA_LACKS = (_PROJECTION, _BIASES, _NORMS, _EMBEDDINGS, _SAVED)
_SD_SCRIPTS = Tool(
    "sd-scripts",
    "sd-scripts",
    {
        **dict.fromkeys(
            _UNETS, Way(_KOHYA, (_UNET_ENDS, *_KOHYA_LACKS), {"kohya": (_UNET_ENDS, _PROJECTION, _BIASES, _EMBEDDINGS)})
        ),
        "flux": Way(_KOHYA, (_FLUX_LAST, *_KOHYA_LACKS), {"kohya": (_FLUX_LAST, _BIASES, _NORMS, _EMBEDDINGS)}),
        **dict.fromkeys((*_SD3, "chroma", "lumina2", "anima"), Way(_KOHYA, _KOHYA_LACKS, {"kohya": (_PROJECTION,)})),
    },
)
_NETWORK = "its network needs rank {rank} at least, it cuts off what is above its own"
_NO_EXTRAS = (_BIASES, _NORMS, _EMBEDDINGS, _SAVED)
_AS_DIFFUSERS_NAMES = Layout("kohya", original_names=False, alpha_is_rank=True)
_ORIGINAL = Way(Layout("comfy", alpha_is_rank=True), (_TEXT, *_NO_EXTRAS), {"comfy": (_TEXT,)}, _NETWORK)
_NAMED_ALIKE = Way(
    Layout("comfy", original_names=False, alpha_is_rank=True), (_TEXT, *_NO_EXTRAS), {"comfy": (_TEXT,)}, _NETWORK
)
_UNET_IN_AITOOLKIT = Way(
    _AS_DIFFUSERS_NAMES, (_UNET_REST, _TEXT_IF_TRAINED, *_NO_EXTRAS), {"kohya": (_UNET_REST, _ALPHAS)}, _NETWORK
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
            (_TEXT, _FLUX_REST_IF_ASKED, *_NO_EXTRAS),
            {"diffusers": (_TEXT, _FLUX_REST)},
            _NETWORK,
        ),
        **dict.fromkeys(("chroma", *_FLUX2, "krea2", *_WAN, "ltx-2", "anima"), _ORIGINAL),
        **dict.fromkeys(("qwen-image", "z-image", "hidream"), _NAMED_ALIKE),
        **dict.fromkeys(
            (*_SD3, "lumina2"),
            Way(_DIFFUSERS, (_TEXT, *_NO_EXTRAS), {"diffusers": (_TEXT,)}, _NETWORK),
        ),
    },
)
# OneTrainer refuses a file with a tensor that it does not know.
_ONE_LACKS = (_BIASES, _NORMS, _SAVED)
_ONETRAINER = Tool(
    "onetrainer",
    "OneTrainer",
    {
        **dict.fromkeys(_UNETS, Way(_KOHYA, _ONE_LACKS, {"kohya": (), "diffusers": (), "comfy": ()})),
        "flux": Way(_T5_SECOND, _ONE_LACKS, {"kohya": (_ALL_IF_T5,), "diffusers": (), "comfy": ()}),
        **dict.fromkeys(
            (*_SD3, "chroma", *_FLUX2, "qwen-image", "z-image", "krea2", "hunyuan-video", "hidream", "anima"),
            Way(_DIFFUSERS, (*_ONE_LACKS, _EMBEDDINGS), {"diffusers": ()}),
        ),
    },
)
_ALL_IF_MORE = Lack("everything, if it has T5 or layers outside the blocks", f"{_T5.pattern}|{_FLUX_REST.pattern}")
# InvokeAI does not recognise a FLUX file with any other layer, and no UNet's with another tensor.
_INVOKEAI = Tool(
    "invokeai",
    "InvokeAI",
    {
        **dict.fromkeys(_UNETS, Way(_KOHYA, _NO_EXTRAS, {"kohya": _NO_EXTRAS})),
        "flux": Way(
            _T5_SECOND,
            (_FLUX_REST, *_NO_EXTRAS),
            {
                "kohya": (_ALL_IF_MORE,),
                "diffusers": (_ALL_IF_TEXT,),
            },
        ),
    },
)
_PIPELINES = Tool(
    "diffusers",
    "diffusers",
    {
        **dict.fromkeys(_UNETS, Way(_DIFFUSERS, (_EMBEDDINGS, _SAVED), {"kohya": (), "diffusers": ()})),
        "flux": Way(
            _DIFFUSERS,
            (_T5, _EMBEDDINGS, _SAVED),
            {"kohya": (_T5, _FLUX_REST), "diffusers": (_T5,)},
        ),
    },
    others=Way(_DIFFUSERS, (_T5, _EMBEDDINGS, _SAVED), {"diffusers": (_T5,), "comfy": (), "kohya": ()}),
    unknown=Way(_DIFFUSERS, (_EMBEDDINGS, _SAVED), {"diffusers": ()}),
)
_NUNCHAKU = Tool(
    "nunchaku",
    "nunchaku",
    {
        "flux": Way(
            _DIFFUSERS,
            (_TEXT, *_NO_EXTRAS),
            {"diffusers": (_TEXT,), "kohya": (_TEXT, _FLUX_REST)},
            completed=True,
        )
    },
)
_FOLDERS = Way(_PEFT, (_EMBEDDINGS,), {"peft": ()})
_PEFT_TOOL = Tool("peft", "PEFT", {}, others=_FOLDERS, unknown=_FOLDERS)

TOOLS: dict[str, Tool] = {
    tool.name: tool
    for tool in (
        *(_COMFYUI, _FORGE, _A1111, _SD_SCRIPTS, _AITOOLKIT, _ONETRAINER, _INVOKEAI),
        *(_PIPELINES, _NUNCHAKU, _PEFT_TOOL),
    )
}


def check_tool(name: object) -> Tool:
    """The tool of this name, or raise `OptionError`."""
    if not isinstance(name, str) or name not in TOOLS:
        raise OptionError(f"for_={name!r}: expected one of {', '.join(map(repr, TOOLS))}")
    return TOOLS[name]
