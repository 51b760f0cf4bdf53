"""Measures everything the model card claims: `python -m experiments.miniature.measure [sdxl] [flux] [metrics]`.

Prints them and writes them into the model card.
"""

from __future__ import annotations

import re
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
from diffusers import DiffusionPipeline
from scipy.stats import spearmanr
from torch import Tensor
from tqdm import tqdm

import mergelab
from mergelab import miniature
from mergelab.miniature.judge import OBJECTS
from mergelab.miniature.world import BACKGROUNDS, COLORS, SHAPES, SIZES, STYLES, SUBJECTS, Scene, caption, draw, sample

BATCH = 8
CARD = miniature.WEIGHTS.parent / "MODEL_CARD.md"


def generate(name: str, pipeline: DiffusionPipeline, prompts: Sequence[str], label: str) -> Tensor:
    """Images (n, 3, 48, 48) in [0, 1]; the i-th prompt with seed i."""
    images = []
    for start in tqdm(range(0, len(prompts), BATCH), desc=label, mininterval=5):
        chunk = list(prompts[start : start + BATCH])
        options = miniature.settings(name)
        if "negative_prompt" in options:
            options["negative_prompt"] = [options["negative_prompt"]] * len(chunk)
        seeds = [torch.Generator().manual_seed(start + i) for i in range(len(chunk))]
        images.append(pipeline(chunk, generator=seeds, output_type="pt", **options).images)
    return torch.cat(images).float()


def load(pipeline: DiffusionPipeline, adapters: Iterable[miniature.MiniatureAdapter]) -> None:
    """Loads adapters of any dialect unmerged, by way of a diffusers file, and activates them at 1.0."""
    pipeline.unload_lora_weights()
    names = []
    with tempfile.TemporaryDirectory() as folder:
        for adapter in adapters:
            file = mergelab.load(adapter.path).save(Path(folder) / f"{adapter.name}.safetensors")
            pipeline.load_lora_weights(str(file), adapter_name=adapter.name)
            names.append(adapter.name)
    if names:
        pipeline.set_adapters(names)


def held_out(count: int) -> list[tuple[Scene, str]]:
    """Scenes of held-out combinations with their prompts: every size, then the prompts that name none."""
    scenes = [
        Scene(shape, color, ground, size)
        for size, shape, color, ground in product(SIZES, SHAPES, COLORS, BACKGROUNDS)
        if Scene(shape, color, ground).held_out
    ]
    pairs = [(scene, caption(scene)) for scene in scenes]
    pairs += [(scene, caption(scene, size=False)) for scene in scenes if scene.size == "large"]
    return pairs[:count]


def accuracy(images: Tensor, scenes: Sequence[Scene]) -> dict[str, float]:
    """Share of images in which each attribute of the scene is the judged one."""
    verdict = miniature.judge(images)
    return {
        name: float(np.mean([got == getattr(scene, name) for got, scene in zip(verdict.best(name), scenes)]))
        for name in ("object", "color", "background")
    }


def shows(images: Tensor, adapter: miniature.MiniatureAdapter) -> np.ndarray:
    """Whether each image shows the adapter's subject or style."""
    attribute = "object" if adapter.kind == "subject" else "style"
    return np.array([name == adapter.name for name in miniature.judge(images).best(attribute)])


def triggered(adapter: miniature.MiniatureAdapter, count: int) -> tuple[list[Scene], list[str]]:
    """Prompts of a subject over sizes and grounds, or of a style over all shapes, colours and grounds."""
    objects = (adapter.name,) if adapter.kind == "subject" else tuple(SHAPES)
    scenes = sample(count, 11, objects=objects, held_out=None)
    if adapter.kind == "style":
        scenes = [replace(scene, object=tuple(SHAPES)[i % 6], style=adapter.name) for i, scene in enumerate(scenes)]
    return scenes, [caption(scene) for scene in scenes]


def measure_pipeline(name: str, count: int = 200, each: int = 48) -> dict[str, Any]:
    """Base model, adapters alone and stacks."""
    pipeline = miniature.pipeline(name)
    pipeline.set_progress_bar_config(disable=True)
    scenes, prompts = zip(*held_out(count))
    base = accuracy(generate(name, pipeline, prompts, f"{name}: held-out prompts"), scenes)
    plain, plain_prompts = list(scenes[::4])[:each], list(prompts[::4])[:each]
    plain_base = accuracy(generate(name, pipeline, plain_prompts, f"{name}: plain"), plain)

    adapters = {}
    known = miniature.adapters(name)
    for adapter in known:
        load(pipeline, [adapter])
        _, called = triggered(adapter, each)
        hits = shows(generate(name, pipeline, called, f"{name}: {adapter.name}"), adapter)
        images = generate(name, pipeline, plain_prompts, f"{name}: {adapter.name}, not called")
        kept = accuracy(images, plain)
        adapters[adapter.name] = {
            "shown": float(hits.mean()),
            "uncalled": float(shows(images, adapter).mean()),
            "kept": min(kept[key] / plain_base[key] for key in kept),
        } | ({"by_shape": [float(hits[i::6].mean()) for i in range(6)]} if adapter.kind == "style" else {})

    stacks = {}
    kinds = {kind: [adapter for adapter in known if adapter.kind == kind] for kind in ("subject", "style")}
    for subject, style in product(kinds["subject"], kinds["style"]):
        load(pipeline, [subject, style])
        scenes_of = [replace(scene, style=style.name) for scene in triggered(subject, each)[0]]
        images = generate(name, pipeline, [caption(s) for s in scenes_of], f"{name}: {subject.name} + {style.name}")
        has_subject, has_style = shows(images, subject), shows(images, style)
        stacks[f"{subject.name} + {style.name}"] = {
            "subject": float(has_subject.mean()),
            "style": float(has_style.mean()),
            "both": float((has_subject & has_style).mean()),
        }
    load(pipeline, [])
    start = time.perf_counter()
    generate(name, pipeline, ["a large red circle on a white background"] * 8, f"{name}: time")
    return {
        "base": base,
        "adapters": adapters,
        "stacks": stacks,
        "seconds for 8 images": time.perf_counter() - start,
        "threads": torch.get_num_threads(),
    }


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Probability that a positive scores above a negative."""
    return float((positive[:, None] > negative).mean() + 0.5 * (positive[:, None] == negative).mean())


@torch.no_grad()
def measure_metrics() -> dict[str, float]:
    """The judge on drawn images, CLIP and LPIPS."""
    found: dict[str, float] = {}
    scenes = sample(1000, 21, objects=OBJECTS, styles=[None] * 4 + [*STYLES], held_out=None)
    images = draw(scenes)
    verdict = miniature.judge(images)
    for name in verdict.names:
        seen = [
            got == (getattr(scene, name) or "plain")
            for got, scene in zip(verdict.best(name), scenes)
            if not (name == "color" and scene.object in SUBJECTS)
            and not (name == "background" and scene.style == "night")
        ]
        found[f"judge, {name}"] = float(np.mean(seen))

    autoencoder = miniature.pipeline("sdxl").vae  # that of both
    latents = [autoencoder.encode(chunk * 2 - 1).latent_dist.mean for chunk in images.split(100)]
    rebuilt = torch.cat([autoencoder.decode(chunk).sample for chunk in latents]) / 2 + 0.5
    errors = (rebuilt - images).abs().mean((1, 2, 3))
    for style in (None, *STYLES):
        chosen = [scene.style == style for scene in scenes]
        found[f"autoencoder, mean absolute error on [-1, 1], {style or 'plain'}"] = 2 * float(errors[chosen].mean())

    model, preprocess = open_clip.create_model_from_pretrained(miniature.clip())
    tokenizer = open_clip.get_tokenizer(miniature.clip())
    model.eval()

    def embed(pictures: Tensor) -> Tensor:
        from torchvision.transforms.functional import to_pil_image

        return model.encode_image(torch.stack([preprocess(to_pil_image(p)) for p in pictures]), normalize=True)

    first = []
    for seed in range(10):
        unique: dict[str, Scene] = {}
        for scene in sample(400, 100 + seed, objects=OBJECTS, styles=[None] * 4 + [*STYLES], held_out=None):
            # A night picture is black whatever its caption says, and one held-out shape is as good as another.
            if (scene.held_out or scene.object in SUBJECTS) and scene.style != "night":
                unique.setdefault(caption(scene), scene)
        captions = list(unique)[:100]
        text = model.encode_text(tokenizer(captions), normalize=True)
        similarity = embed(draw([unique[key] for key in captions])) @ text.T
        first.append(float((similarity.argmax(1) == torch.arange(len(captions))).float().mean()))
    found["CLIP: right caption of 100"] = float(np.mean(first))
    vectors = embed(images)
    for subject in SUBJECTS:
        text = model.encode_text(tokenizer([caption(Scene(subject), size=False, background=False)]), normalize=True)
        score = (vectors @ text.T)[:, 0].numpy()
        present = np.array([scene.object == subject for scene in scenes])
        found[f"CLIP: AUC of {subject}"] = auc(score[present], score[~present])

    metric = miniature.perceptual()
    others = sample(1000, 22, objects=OBJECTS, styles=[None] * 4 + [*STYLES], held_out=None)
    random = np.random.default_rng(0)
    names = ("object", "color", "background", "size", "style")
    mixed = [
        replace(scene, **{n: getattr(other, n) for n in names if random.random() < share})
        for scene, other, share in zip(scenes, others, random.random(1000))
    ]
    distances = metric(images, draw(mixed), normalize=True).flatten().numpy()
    differing = [sum(getattr(a, n) != getattr(b, n) for n in names if visible(a, b, n)) for a, b in zip(scenes, mixed)]
    found["LPIPS: Spearman with differing attributes"] = float(spearmanr(distances, differing).statistic)
    return found


def visible(a: Scene, b: Scene, name: str) -> bool:
    """Whether a difference in an attribute can be seen: subjects have no colour of their own, night no ground."""
    if name == "color":
        return a.object in SHAPES and b.object in SHAPES
    return not (name == "background" and "night" in (a.style, b.style))


def pipeline_tables(name: str, part: dict[str, Any]) -> str:
    """The figures of a base model, its adapters and their stacks, as a section of the model card."""
    base = ", ".join(f"{key} {share:.1%}" for key, share in part["base"].items())
    lines = [
        f"### {name}",
        "",
        f"200 prompts of held-out combinations: {base}. Eight images of 20 steps: "
        f"{part['seconds for 8 images']:.1f} s ({part['threads']} threads).",
        "",
        "| adapter | shown when called | shown uncalled | accuracy kept uncalled | lowest of six shapes |",
        "|---|---|---|---|---|",
    ]
    for adapter, row in part["adapters"].items():
        lowest = f"{min(row['by_shape']):.0%}" if "by_shape" in row else ""
        lines.append(f"| {adapter} | {row['shown']:.0%} | {row['uncalled']:.0%} | {row['kept']:.0%} | {lowest} |")
    lines += ["", "| unmerged stack | subject | style | both |", "|---|---|---|---|"]
    for pair, row in part["stacks"].items():
        lines.append(f"| {pair} | {row['subject']:.0%} | {row['style']:.0%} | {row['both']:.0%} |")
    return "\n".join(lines)


def metric_table(found: dict[str, float]) -> str:
    """The figures of the metrics, as a section of the model card."""
    lines = ["### Judge, autoencoder, CLIP and LPIPS, on drawn images", "", "| | |", "|---|---|"]
    return "\n".join(lines + [f"| {key} | {value:.3f} |" for key, value in found.items()])


def replaced(card: str, section: str) -> str:
    """The model card with one section between its marks in place of the one of the same heading."""
    before, rest = card.split("<!-- measured -->\n")
    measured, after = rest.split("<!-- end -->")
    sections = {part.split("\n", 1)[0]: part.strip() for part in re.split(r"(?m)^(?=### )", measured) if part.strip()}
    sections[section.split("\n", 1)[0]] = section
    return "\n".join([f"{before}<!-- measured -->", "\n\n".join(sections.values()), f"<!-- end -->{after}"])


def main(parts: Sequence[str]) -> None:
    """Measures the named parts, prints them, and puts them into the model card; its other parts stay."""
    for part in parts or (*miniature.PIPELINES, "metrics"):
        section = (
            metric_table(measure_metrics()) if part == "metrics" else pipeline_tables(part, measure_pipeline(part))
        )
        print(section)
        CARD.write_text(replaced(CARD.read_text(), section))


if __name__ == "__main__":
    main(sys.argv[1:])
