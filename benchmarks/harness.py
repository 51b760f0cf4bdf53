"""The harness's own time beside the pipeline's and the metrics': `python benchmarks/harness.py`.

Draws and scores 200 images of the miniature SDXL and prints where the time went.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import mergelab as ml
from mergelab.evaluation.demo import config

with tempfile.TemporaryDirectory() as folder:
    demo = config("sdxl")
    prompts = [*demo["prompts"][:3], "a sks", "a blue circle on a white background"]
    ml.evaluate(demo | {"prompts": prompts, "seeds": 5, "merges": demo["merges"][:3]}, folder)
    seconds = json.loads((Path(folder) / "summary.json").read_text())["seconds"]
    images = len(list((Path(folder) / "images").glob("*.png")))
total = sum(seconds.values())
print(f"{images} images, {total:.1f} s")
for part, spent in seconds.items():
    print(f"  {part}: {spent:.1f} s, {spent / total:.1%}")
