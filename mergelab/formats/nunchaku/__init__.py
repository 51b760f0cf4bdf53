"""nunchaku's quantised FLUX.1: which of its modules hold a layer, and how it keeps low-rank factors."""

from mergelab.formats.nunchaku.fusing import fused, unfused
from mergelab.formats.nunchaku.modules import nunchaku
from mergelab.formats.nunchaku.packed import packed, packed_dtype

__all__ = ["fused", "nunchaku", "packed", "packed_dtype", "unfused"]
