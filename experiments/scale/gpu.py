"""The parts of a run that want a GPU: merges, a pipeline of true size, adapters in and out of it, images, scores."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import torch

import mergelab as ml
from benchmarks.gpu.merging import write_files
from benchmarks.gpu.pipelines import real_pipeline
from benchmarks.gpu.session import Found, Session
from benchmarks.measuring import timed
from experiments.scale.encoders import put_true_encoders
from experiments.scale.files import SIDE, picture
from experiments.scale.timing import seconds_by, seconds_of
from mergelab.errors import LayerError
from mergelab.evaluation.merging import Planned
from mergelab.evaluation.metrics.clip import ClipImage, ClipModel, ClipText
from mergelab.evaluation.metrics.lpips import Lpips
from mergelab.evaluation.metrics.metric import Asked, Picture
from mergelab.evaluation.store import Store
from mergelab.pipelines.fingerprints import fingerprint
from mergelab.pipelines.images import generate_images
from mergelab.pipelines.staging import Stage

PROMPTS = ["a photo of a sks on a gray background", "a sks in szn style", "a sks", "a photo in szn style"]
STEPS = {"flux": 28, "sdxl": 30}
FEW = 4
PARTS = (
    "load",
    "unfuse",
    "_fitting",
    "_adds",
    "fuse",
    "collect",
    "find_places",
    "copied",
    "added",
    "factors",
    "_checksum",
)
"""Functions of which the seconds are told when an adapter comes, those of what they call included."""
TOGETHER = 4
"""Merges that are made at a time, and images of a batch."""


def units(session: Session, archs: tuple[str, ...]) -> None:
    """All of them, the cheapest first."""
    session.unit("scores of an image", 25, partial(scores, session))
    for arch in archs:
        session.unit(f"{arch}: adapters", 8, partial(write_files, session, arch))
        for method in ("svd", "ties"):
            session.unit(f"{arch}: merges by {method}", 30, partial(merges, session, arch, method))
        one = Drawn(session, arch)
        if session.unit(f"{arch}: pipeline", 30, one.build) is None:
            continue
        session.unit(f"{arch}: prompts encoded", 5, one.encode)
        session.unit(f"{arch}: adapters swapped", 25, one.swap)
        session.unit(f"{arch}: image decoded", 5, one.decode)
        for steps, batch, expected in (
            (FEW, 1, 6),
            (STEPS[arch], 1, 25),
            (FEW, TOGETHER, 8),
            (STEPS[arch], TOGETHER, 35),
        ):
            session.unit(f"{arch}: {steps} steps, batch {batch}", expected, partial(one.draw, steps, batch))
        session.unit(f"{arch}: pipeline moved", 40, one.move)
        one.pipe = one.stage = None


def scores(session: Session) -> Found:
    """CLIP ViT-B-32 and LPIPS (AlexNet), of random weights: an image of its own, held against four others."""
    import lpips
    import open_clip

    device, store = session.device, Store(session.folder / "scored")
    store.images.mkdir(parents=True)
    weights = session.folder / "clip.pt"
    torch.save(open_clip.create_model("ViT-B-32").state_dict(), weights)
    pixels = picture("photographs", 128 if session.small else SIDE)
    for number in range(5):
        store.save_image(str(number), pixels.roll(number, 2))
    (clip, opening), (lpips_metric, opening_lpips) = (
        timed(lambda: ClipModel("ViT-B-32", str(weights), device)),
        timed(lambda: Lpips("miniature", device)),
    )
    lpips_metric.model = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False).to(device).eval()
    found = {"open": opening + opening_lpips, "load": seconds_of(lambda: store._read_image("0"))}
    loaded = {str(number): store.load_image(str(number)) for number in range(5)}

    def asked() -> Asked:
        """Anew: what the encoder remembers it would not compute."""
        clip._features.clear()
        others = {f"reference {number}": Picture(str(number), loaded[str(number)]) for number in range(1, 5)}
        return Asked(PROMPTS[1], others, {"subject": ("a sks",), "style": ("in szn style",)})

    mine = Picture("0", loaded["0"])
    found["clip_text"] = seconds_of(lambda: ClipText(clip).score(mine, asked()))
    found["clip_image_of_five"] = seconds_of(lambda: ClipImage(clip).score(mine, asked()))
    found["encode_one"] = seconds_of(lambda: (clip._features.clear(), clip.image(mine)))
    found["lpips_of_four"] = seconds_of(lambda: lpips_metric.score(mine, asked()))
    return found


def merges(session: Session, arch: str, method: str) -> Found:
    """Four merges of two adapters to rank 32: made at a time, alone, and each kept as a run keeps it."""
    files = session.files[arch][:2]
    loras = [ml.load(path) for path in files]
    recipes: list[dict[str, Any]] = [
        {"method": method, "rank": session.rank, "weights": [1.0, 0.4 + number / 10]} for number in range(TOGETHER)
    ]
    device = session.device
    (first, cold) = timed(lambda: ml.merge_many(loras, recipes, device=device, progress=False))
    del first
    made, together = timed(lambda: ml.merge_many(loras, recipes, device=device, progress=False))
    _, alone = timed(lambda: ml.merge(loras, device=device, progress=False, **recipes[0]))
    paths = [session.folder / f"{arch}-{method}-{number}.safetensors" for number in range(2)]
    kept = [timed(partial(Planned(recipes[0], "0" * 32, path).keep, one, 0.0))[1] for one, path in zip(made, paths)]
    session.files[f"{arch} {method}"], path = paths, paths[0]
    return {
        "cold": cold, "four": together, "alone": alone, "keep": min(kept), "bytes": path.stat().st_size,
        "record_bytes": path.with_suffix(".json").stat().st_size,
    }  # fmt: skip


class Drawn:
    """One pipeline of the true size and what is drawn with it."""

    def __init__(self, session: Session, arch: str) -> None:
        self._session, self._arch = session, arch
        self.pipe: Any = None
        self.stage: Stage | None = None
        self._files = list[Path]()

    @property
    def _keywords(self) -> dict[str, Any]:
        side = 64 if self._session.small else SIDE
        limits = {"max_sequence_length": 16 if self._session.small else 512} if self._arch == "flux" else {}
        return {"width": side, "height": side} | limits

    def build(self) -> Found:
        """Made on the device; and its fingerprint."""
        session, arch = self._session, self._arch
        self.pipe, making = timed(lambda: real_pipeline(arch, session.device, session.small))
        encoders = 0.0
        if not session.small:
            _, encoders = timed(lambda: put_true_encoders(self.pipe, arch, session.device))
        _, known = timed(lambda: fingerprint(self.pipe))
        parts = [part for part in self.pipe.components.values() if isinstance(part, torch.nn.Module)]
        size = sum(p.numel() * p.element_size() for part in parts for p in part.parameters())
        files = session.files.get(f"{arch} svd", session.files[arch])
        if session.small:  # of other layers than the small pipeline's
            from benchmarks.synthetic import write_adapter

            name, model = ("transformer", self.pipe.transformer) if arch == "flux" else ("unet", self.pipe.unet)
            layers = {f"{name}.{path}": tuple(module.weight.shape) for path, module in model.named_modules()
                      if isinstance(module, torch.nn.Linear) and "attn" in path}  # fmt: skip
            files = [write_adapter(session.folder / f"{arch}-small-{n}.safetensors", layers, 4, n) for n in range(2)]
        self._files = files[:2]
        layers = [layer for path in self._files for layer in ml.load(path).layers]
        self.stage = Stage(self.pipe, layers)
        return {"make": making, "encoders": encoders, "fingerprint": known, "bytes": size, "fused": self.stage.fused}

    def move(self) -> Found:
        """From the device to main memory and back: what a start pays after reading the files."""
        _, out = timed(lambda: self.pipe.to("cpu"))
        _, back = timed(lambda: self.pipe.to(self._session.device))
        return {"to_memory": out, "to_device": back}

    def encode(self) -> Found:
        """One prompt by the text encoders; a run encodes each once."""
        extra = {"max_sequence_length": self._keywords["max_sequence_length"]} if self._arch == "flux" else {}
        return {"prompt": seconds_of(lambda: self._encoded(extra))}

    @torch.no_grad()
    def _encoded(self, extra: dict[str, Any]) -> Any:
        return self.pipe.encode_prompt(prompt=PROMPTS[1], prompt_2=None, device=self._session.device, **extra)

    def swap(self) -> Found:
        """A merged file loaded and fused where none is, where another is, and taken back; as the stage does it."""
        stage, files = self._stage, self._files
        with stage:
            found = {"first": timed(lambda: stage.show({"a": ml.load(files[0])}, "a"))[1]}
            for number in range(3):
                path = files[(number + 1) % 2]
                found[f"another_{number}"] = timed(partial(self._show, path, str(number)))[1]
            found["load"] = timed(lambda: ml.load(files[0]))[1]
            found["unfuse"] = timed(stage.clear)[1]
            where = stage._room()
            found["fuse"] = timed(partial(self._show, files[0], "again"))[1]
            parts = seconds_by(partial(self._show, files[1], "parts"), PARTS)
        return found | {"originals": where, "bytes": files[0].stat().st_size, "parts": parts} | self._memory()

    def _show(self, path: Path, key: str) -> None:
        self._stage.show({key: ml.load(path)}, key)

    @property
    def _stage(self) -> Stage:
        assert self.stage is not None
        return self.stage

    @torch.no_grad()
    def decode(self) -> Found:
        """The VAE's part of an image."""
        vae, side = self.pipe.vae, (64 if self._session.small else SIDE) // 8
        latents = torch.randn(1, vae.config.latent_channels, side, side, device=self._session.device, dtype=vae.dtype)
        return {"decode": seconds_of(lambda: vae.decode(latents).sample)}

    def draw(self, steps: int, batch: int) -> Found:
        """One batch of images with a merge fused, its prompts encoded already."""
        keywords = self._keywords | {"num_inference_steps": 2 if self._session.small else steps}
        cells = [(PROMPTS[number % 4], number) for number in range(batch)]
        stage, nan = self._stage, list[bool]()

        def call() -> None:
            try:
                generate_images(self.pipe, cells, keywords)
            except LayerError:  # random weights: the image is drawn all the same
                nan.append(True)

        with stage:
            stage.show({"a": ml.load(self._files[0])}, "a")
            _, first = timed(call)
            taken = [timed(call)[1] for _ in range(1 if steps > FEW else 3)]
        return {
            "first": first,
            "seconds": min(taken),
            "per_image": min(taken) / batch,
            "nan": bool(nan),
        } | self._memory()

    def _memory(self) -> dict[str, float]:
        return {"peak_gb": torch.cuda.max_memory_allocated() / 1e9} if self._session.is_cuda else {}
