"""Small trained SDXL and FLUX pipelines, and adapters for them, that ship with the package.

They are pipelines of the real classes with tiny widths, trained on one drawn world (`mergelab.miniature.world`), so
everything that works on the big models can be tried offline, in seconds, and what an image shows can be read from its
pixels (`mergelab.miniature.judge`). The model card beside this file has their measured quality.

Examples:
    >>> from mergelab import miniature
    >>> [(adapter.name, adapter.kind, adapter.trigger) for adapter in miniature.adapters("sdxl")][:2]
    [('ghost', 'subject', 'sks'), ('mushroom', 'subject', 'zwk')]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mergelab.errors import OptionError
from mergelab.miniature.judge import Verdict, judge
from mergelab.miniature.world import STYLES, SUBJECTS, TRIGGERS, Scene, caption, draw, sample

if TYPE_CHECKING:
    import lpips
    from diffusers import DiffusionPipeline

__all__ = [
    "PIPELINES",
    "MiniatureAdapter",
    "Scene",
    "Verdict",
    "adapter",
    "adapters",
    "caption",
    "clip",
    "draw",
    "folder",
    "judge",
    "pairs",
    "perceptual",
    "pipeline",
    "sample",
    "settings",
]

WEIGHTS = Path(__file__).parent / "weights"
PIPELINES = ("sdxl", "flux")
"""Names of the pipelines."""
PREFIX = "miniature/"
"""Of a pipeline's name, and of an adapter's, where others could stand: `miniature/sdxl`, `miniature/sdxl/ghost`."""

STRENGTHS = {"ghost-strong": 1 / 3, "day-weak": 3.0}
"""Adapters whose right strength is not 1, as those that people download often are."""

_SETTINGS: dict[str, dict[str, Any]] = {
    "sdxl": {"num_inference_steps": 20, "guidance_scale": 3.0},
    "flux": {
        "num_inference_steps": 20,
        "true_cfg_scale": 4.0,
        "negative_prompt": "",
        "height": 48,
        "width": 48,
        "max_sequence_length": 16,
    },
}


@dataclass(frozen=True)
class MiniatureAdapter:
    """One adapter that ships with the package.

    Attributes:
        name: of the subject or style, or `"turbo"`.
        path: a safetensors file or a PEFT folder.
        trigger: the rare word that calls it; empty for turbo, which nothing calls.
        prompt: its concept alone, as a prompt: `"a sks"`, `"a cfw star"`, `"in szn style"`; empty for turbo.
        kind: `"subject"`, `"style"` or `"turbo"`, which draws in four steps without guidance.
        strength: at which it has the effect that it was trained for: 1, but for `ghost-strong` and `day-weak`, whose
            files are three times too strong and too weak.
    """

    name: str
    path: Path
    trigger: str
    prompt: str
    kind: str
    strength: float = 1.0

    @property
    def shows(self) -> str:
        """The subject or style as the world calls it: that of `ghost-strong` is `ghost`."""
        return _shown_by(self.name)


def _shown_by(name: str) -> str:
    return name.partition("-")[0]


def _known(name: str) -> str:
    if name not in PIPELINES:
        raise OptionError(f"unknown miniature pipeline {name!r}; known: {', '.join(map(repr, PIPELINES))}")
    return name


def folder(name: str) -> Path:
    """The folder of a small pipeline, in diffusers' layout.

    Raises:
        OptionError: another name.

    Examples:
        >>> from mergelab import miniature
        >>> miniature.folder("flux").name
        'flux'
    """
    return WEIGHTS / _known(name)


def pipeline(name: str, **options: Any) -> DiffusionPipeline:
    """The small pipeline: a `StableDiffusionXLPipeline` or a `FluxPipeline`, in float32 unless `torch_dtype` is given.

    Call it with `settings(name)`, as in the example; without them `FluxPipeline` assumes 512 x 512 pixels.

    Args:
        name: `"sdxl"` or `"flux"`.
        options: passed on to `DiffusionPipeline.from_pretrained`.

    Raises:
        OptionError: another name.

    Examples:
        >>> from mergelab import miniature
        >>> pipe = miniature.pipeline("flux")
        >>> pipe.set_progress_bar_config(disable=True)
        >>> pipe("a large red circle on a white background", **miniature.settings("flux")).images[0].size
        (48, 48)
    """
    from diffusers import DiffusionPipeline

    return DiffusionPipeline.from_pretrained(folder(name), **options)


def settings(name: str, *, turbo: bool = False) -> dict[str, Any]:
    """Keywords of a call of the pipeline that its quality was measured with: steps, guidance, size.

    Args:
        name: `"sdxl"` or `"flux"`.
        turbo: those of its turbo adapter: four steps without guidance.

    Raises:
        OptionError: another name.

    Examples:
        >>> from mergelab import miniature
        >>> miniature.settings("sdxl"), miniature.settings("sdxl", turbo=True)
        ({'num_inference_steps': 20, 'guidance_scale': 3.0}, {'num_inference_steps': 4, 'guidance_scale': 1.0})
    """
    usual = dict(_SETTINGS[_known(name)])
    if not turbo:
        return usual
    unguided = {key: 1.0 for key in usual if key.endswith("scale")}
    return (
        {key: value for key, value in usual.items() if key != "negative_prompt"} | {"num_inference_steps": 4} | unguided
    )


def adapters(name: str) -> list[MiniatureAdapter]:
    """The adapters of a pipeline, in several dialects: subjects, styles, turbo, then two of another strength than 1.

    Raises:
        OptionError: another name.

    Examples:
        >>> from mergelab import miniature
        >>> ghost = miniature.adapters("sdxl")[0]
        >>> ghost.name, ghost.trigger, ghost.prompt, ghost.kind, ghost.path.name
        ('ghost', 'sks', 'a sks', 'subject', 'ghost.safetensors')
    """
    folder = WEIGHTS / "adapters" / _known(name)
    paths = {path.stem: path for path in folder.iterdir()}
    found = []
    for own in (own for own in (*SUBJECTS, *STYLES, "turbo", *STRENGTHS) if own in paths):
        concept = _shown_by(own)
        kind = "subject" if concept in SUBJECTS else "style" if concept in STYLES else "turbo"
        words = caption(Scene(concept), size=False, background=False) if kind == "subject" else ""
        words = f"in {TRIGGERS[concept]} style" if kind == "style" else words
        found.append(MiniatureAdapter(own, paths[own], TRIGGERS.get(concept, ""), words, kind, STRENGTHS.get(own, 1.0)))
    return found


def pairs(name: str) -> list[tuple[MiniatureAdapter, MiniatureAdapter]]:
    """Every subject of a pipeline with every style: 64 pairs.

    Raises:
        OptionError: another name.

    Examples:
        >>> from mergelab import miniature
        >>> [(subject.name, style.name) for subject, style in miniature.pairs("flux")][:2]
        [('ghost', 'day'), ('ghost', 'stripes')]
    """
    known = [adapter for adapter in adapters(name) if adapter.strength == 1]
    subjects, styles = ([adapter for adapter in known if adapter.kind == kind] for kind in ("subject", "style"))
    return [(subject, style) for subject in subjects for style in styles]


def adapter(name: str) -> MiniatureAdapter:
    """One adapter, by the name that configurations and the command line have for it: `"miniature/sdxl/ghost"`.

    Raises:
        OptionError: there is none of this name.

    Examples:
        >>> from mergelab import miniature
        >>> miniature.adapter("miniature/sdxl/ghost").trigger
        'sks'
    """
    of, _, own = name.removeprefix(PREFIX).partition("/")
    known = {adapter.name: adapter for adapter in adapters(of)}
    if own not in known:
        raise OptionError(f"there is no miniature adapter {name!r}; known: {', '.join(known)}")
    return known[own]


def pipeline_of(files: Sequence[Path]) -> str | None:
    """The pipeline that files which ship are adapters for; None where that is none, or not the same.

    Example:
        >>> pipeline_of([adapter("miniature/sdxl/ghost").path]), pipeline_of([Path("ghost.safetensors")])
        ('miniature/sdxl', None)
    """
    known = (name for name in PIPELINES if all(WEIGHTS / "adapters" / name in file.parents for file in files))
    return next((f"{PREFIX}{name}" for name in known if files), None)


def clip() -> str:
    """The name by which open_clip loads the small CLIP: `open_clip.create_model_and_transforms(miniature.clip())`.

    Its tokenizer is `open_clip.get_tokenizer(miniature.clip())`.
    """
    return f"local-dir:{WEIGHTS / 'clip'}"


def perceptual() -> lpips.LPIPS:
    """LPIPS with a trunk trained on the drawn world: SqueezeNet features, whose layers and channels all count the same.

    It takes images (n, 3, 48, 48) in [-1, 1], or in [0, 1] with `normalize=True`, as `lpips.LPIPS` does. It is the mean
    over the layers, not their sum, so that images of different scenes are about 0.6 apart, as photographs of different
    scenes are in the usual LPIPS. Two seeds of a prompt are about 0.05 apart: in the drawn world, prompts leave little
    open.
    """
    import warnings

    import lpips
    from safetensors.torch import load_file
    from torch.nn.init import constant_

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchvision's, about an argument that lpips passes to it
        metric = lpips.LPIPS(net="squeeze", pretrained=False, pnet_rand=True, verbose=False)
    metric.net.load_state_dict(load_file(WEIGHTS / "lpips_trunk.safetensors"))
    for head in metric.lins:
        constant_(head.model[-1].weight, 1 / len(metric.lins))
    return metric.eval()
