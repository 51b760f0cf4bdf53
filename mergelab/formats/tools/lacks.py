"""What tools have no place for, as data: names of layers are canonical, and so are those of extras."""

from __future__ import annotations

from mergelab.formats.tools.tool import Lack

T5 = Lack("T5", r"^text_encoder(_\d)?\.(encoder\.block\.|shared\b)")
TEXT = Lack("text encoders", r"^text_encoder")
TEXT_IF_TRAINED = Lack("text encoders", r"^text_encoder", kept="its network trains them")
PROJECTION = Lack("the text projection", r"^text_encoder(_\d)?\.text_projection\b")
UNET_ENDS = Lack("conv_in, conv_out, time_embedding, add_embedding", r"^unet\.(conv_(in|out)|(time|add)_embedding)\b")
UNET_REST = Lack("layers outside the attention blocks", r"^unet\.(?!.*\battentions\.)", kept="its network has them")
UNET_ATTENTION = Lack("q, k, v and out of all attention", r"^unet\..*\.attn\d\.to_(q|k|v|out)\b")
ALL_IF_ATTENTION = Lack("everything, if it has q, k, v or out", UNET_ATTENTION.pattern)
ALL_IF_T5 = Lack("everything, if it has T5", T5.pattern)
ALL_IF_TEXT = Lack("everything, if it has text encoders", TEXT.pattern)
FLUX_REST = Lack("layers outside the blocks", r"^transformer\.(?!(single_)?transformer_blocks\.)")
FLUX_REST_IF_ASKED = Lack(FLUX_REST.what, FLUX_REST.pattern, kept="its network has them")
FLUX_LAST = Lack("the final layer", r"^transformer\.(norm_out\.linear|proj_out)\b")
BIASES = Lack("biases", r"\.lora_B\.bias$")
NORMS = Lack("norms", r"^transformer\..*\bnorm_(added_)?[qk]\.weight$|\.diff$")
EMBEDDINGS = Lack("embeddings", r"^bundle_emb\.")
ALPHAS = Lack("alphas other than the rank", r"^unet\.")
SAVED = Lack("whole modules and rows of tokens", r"\.(modules_to_save|token_adapter)\.")
ALL_IF_MORE = Lack("everything, if it has T5 or layers outside the blocks", f"{T5.pattern}|{FLUX_REST.pattern}")
