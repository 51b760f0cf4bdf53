"""Trains the miniature models, as `python -m experiments.miniature [PART ...]`.

Parts, in this order and all of them by default: vae, clip, lpips, sdxl, flux (each with its adapters), export. Every
part resumes where it was interrupted and is skipped where it is finished, so `sdxl` and `flux` can run side by side in
two processes once `vae` is there. `export` copies what is finished into the package, the large parts in float16;
`restore` copies what the package has into the folder, so that only what is missing there is trained.
"""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

from diffusers import DiffusionPipeline, ModelMixin

from experiments.miniature import adapters, base, clip, perceptual, vae
from experiments.miniature.training import RUNS
from mergelab.miniature import PIPELINES, WEIGHTS


def export() -> None:
    """Copies the finished parts into the package."""
    for name in PIPELINES:
        target = WEIGHTS / name
        shutil.rmtree(target, ignore_errors=True)
        pipeline = DiffusionPipeline.from_pretrained(RUNS / name)
        for part in pipeline.components.values():
            # transformers loads a model in the precision it was saved in, diffusers in float32
            if isinstance(part, ModelMixin):
                part.half()
        pipeline.save_pretrained(target)
        for config in target.rglob("*.json"):
            forget_origin(config)
        shutil.copytree(RUNS / "adapters" / name, WEIGHTS / "adapters" / name, dirs_exist_ok=True)
    shutil.copytree(RUNS / "clip", WEIGHTS / "clip", dirs_exist_ok=True)
    shutil.copy(RUNS / "lpips_trunk.safetensors", WEIGHTS)
    size = sum(file.stat().st_size for file in WEIGHTS.rglob("*") if file.is_file())
    print(f"{WEIGHTS}: {size / 1e6:.1f} MB")


def restore() -> None:
    """Copies the parts that ship into the folder, as if they had been trained there."""
    for name in PIPELINES:
        pipeline = DiffusionPipeline.from_pretrained(WEIGHTS / name)
        pipeline.save_pretrained(RUNS / name)
        pipeline.vae.save_pretrained(RUNS / "vae")
    for part in ("adapters", "clip"):
        shutil.copytree(WEIGHTS / part, RUNS / part, dirs_exist_ok=True)
    shutil.copy(WEIGHTS / "lpips_trunk.safetensors", RUNS)


def forget_origin(config: Path) -> None:
    """Removes the folder a configuration was loaded from."""
    content = json.loads(config.read_text())
    if content.pop("_name_or_path", None) is not None:
        config.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n")


def main(parts: list[str]) -> None:
    """Runs the named parts."""
    known = {"vae": vae.train, "clip": clip.train, "lpips": perceptual.train}
    known |= {name: lambda name=name: (base.train(name), adapters.train_all(name)) for name in base.KINDS}
    known |= {"export": export, "restore": restore}
    if unknown := set(parts) - set(known):
        raise SystemExit(f"unknown part {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    for part in parts or [name for name in known if name != "restore"]:
        known[part]()


if __name__ == "__main__":
    main(sys.argv[1:])
