"""nunchaku's quantised FLUX.1: which of its modules hold a layer, and how it keeps low-rank factors."""

from mergelab.formats.nunchaku.fusing import QUANTIZED, fused, unfused
from mergelab.formats.nunchaku.modules import nunchaku
from mergelab.formats.nunchaku.packed import packed, packed_dtype
from mergelab.formats.nunchaku.quantized import QuantizedModel

__all__ = ["QUANTIZED", "QuantizedModel", "fused", "nunchaku", "packed", "packed_dtype", "unfused"]
