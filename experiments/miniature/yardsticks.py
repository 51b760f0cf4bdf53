"""How good the metrics are that read the pictures, on drawn ones: judge, autoencoder, CLIP and LPIPS."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import open_clip
import torch
from scipy.stats import spearmanr
from torch import Tensor

from mergelab import miniature
from mergelab.miniature.judge import OBJECTS
from mergelab.miniature.world import SHAPES, STYLES, SUBJECTS, Scene, caption, draw, sample


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
