"""The usual presets of block weights, as sd-webui-lora-block-weight and ComfyUI's Inspire Pack name them.

They are ranges over all blocks of a model, so that an adapter that changes more blocks than the usual ones has a weight
for each; on the blocks that the tools' lists name they have the tools' values. The Inspire Pack's lists for FLUX's
double blocks end there, and it goes on with their last value, so that DBL-ALL and DBL-TAIL6 have the single blocks too.
"""

from __future__ import annotations

from collections.abc import Mapping

_SD: Mapping[str, str] = {
    "NONE": "",
    "ALL": "BASE IN00-OUT11",
    "INS": "BASE IN00-IN04",
    "IND": "BASE IN05-IN11",
    "INALL": "BASE IN00-IN11",
    "MIDALL": "BASE MID",
    "MIDD": "BASE IN05-OUT06",
    "MIDD0.2": "BASE IN08-IN11=0.2 MID-OUT03=0.4 OUT04=0.2",
    "MIDD0.8": "BASE IN07=0.5 IN08-MID=0.8 OUT00-OUT03=0.4",
    "MOUT": "BASE IN08-OUT08 OUT09=0.5",
    "OUTD": "BASE OUT00-OUT06",
    "OUTS": "BASE OUT07-OUT11",
    "OUTALL": "BASE OUT00-OUT11",
    "ALL0.5": "BASE=0.5 IN00-OUT11=0.5",
}
_SDXL: Mapping[str, str] = {
    "NONE": "",
    "ALL": "BASE IN00-OUT08",
    "INALL": "BASE IN00-IN08",
    "MIDALL": "BASE MID",
    "OUTALL": "BASE OUT00-OUT08",
    "ALL0.5": "BASE=0.5 IN00-OUT08=0.5",
}
_FLUX: Mapping[str, str] = {
    "NONE": "",
    "ALL": "BASE D00-S37",
    "DBL-ALL": "BASE D00-S37",
    "DBL-FRONT7": "BASE D00-D06",
    "DBL-MID6": "BASE D07-D12",
    "DBL-TAIL6": "BASE D13-S37",
    "SINGLE-ALL": "BASE S00-S37",
    "SINGLE-1TO10": "BASE S00-S09",
    "SINGLE-11TO20": "BASE S10-S19",
    "SINGLE-21TO30": "BASE S20-S29",
    "SINGLE-31TO37": "BASE S30-S37",
    "ALL0.5": "BASE=0.5 D00-S37=0.5",
}
PRESETS: Mapping[str, Mapping[str, str]] = {"sd15": _SD, "sdxl": _SDXL, "flux": _FLUX}
"""Family -> name in capitals -> ranges of blocks with values, as `Family.spread` takes them."""
