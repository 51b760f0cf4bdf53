"""Keeps rare words apart: the last part of training a base model.

A base model never sees the words that call an adapter, so its text encoders may give all of them one vector: an adapter
of the denoiser then cannot tell its own word from another adapter's, and two of them overwrite each other. The encoders
of real models know far more words than any adapter uses. Here they go on training until a linear layer can name a rare
word from its token and from the pooled vector, while all other captions keep the vectors that the denoiser knows, and
those with rare words stay near theirs.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from experiments.miniature.captions import vary
from experiments.miniature.tokens import LENGTH, RARE
from experiments.miniature.training import DEVICE, fit
from mergelab.miniature.world import Scene

STEPS, BATCH, LR, CAPTIONS = 1200, 48, 1e-3, 6000
Tokens = dict[str, Tensor]


def encoders_of(pipeline: DiffusionPipeline) -> dict[str, nn.Module]:
    """The text encoders, by the name of their tokenizer."""
    return {f"tokenizer{end}": getattr(pipeline, f"text_encoder{end}") for end in ("", "_2")}


def tokenize(pipeline: DiffusionPipeline, captions: Sequence[str]) -> Tokens:
    """Tokens (n, 16) of the captions for each tokenizer."""
    options = {"padding": "max_length", "max_length": LENGTH, "truncation": True, "return_tensors": "pt"}
    # A tokenizer remembers how it last padded, and would be saved with that.
    tokenizers = {key: copy.deepcopy(getattr(pipeline, key)) for key in encoders_of(pipeline)}
    return {key: tokenizer(list(captions), **options).input_ids for key, tokenizer in tokenizers.items()}


def encode(pipeline: DiffusionPipeline, tokens: Tokens) -> tuple[Tensor, Tensor]:
    """What the denoiser gets of captions: words (n, 16, d) and pooled (n, d), as from `pipeline.encode_prompt`."""
    (first, ids), (second, ids_2) = zip(encoders_of(pipeline).values(), tokens.values())
    if hasattr(pipeline, "unet"):
        outs = first(ids.to(DEVICE), output_hidden_states=True), second(ids_2.to(DEVICE), output_hidden_states=True)
        return torch.cat([out.hidden_states[-2] for out in outs], -1), outs[1].text_embeds
    return second(ids_2.to(DEVICE))[0], first(ids.to(DEVICE)).pooler_output


def strange(scene: Scene, generator: torch.Generator) -> tuple[str, int, int]:
    """A caption with a rare word for the object, the style or both, and which ones; -100 where there is none."""
    first, second = torch.randperm(len(RARE), generator=generator)[:2].tolist()
    kind = torch.rand(1, generator=generator).item()
    text = vary(scene, generator).lower()
    if kind < 0.7:
        text = text.replace("an orange", "a orange").replace(f"{scene.color} {scene.object}", RARE[first])
    if kind > 0.4:
        text += f" in {RARE[second]} style"
    return text, first if kind < 0.7 else -100, second if kind > 0.4 else -100


def places(pipeline: DiffusionPipeline, tokens: Tokens, words: Tensor) -> Tensor:
    """(n,): the place of the token of a rare word in each caption; 0 where there is none."""
    key = "tokenizer" if hasattr(pipeline, "unet") else "tokenizer_2"
    rare = torch.tensor([row[0] for row in getattr(pipeline, key)(RARE, add_special_tokens=False).input_ids])
    return (tokens[key] == rare[words.clamp(min=0)].unsqueeze(1)).int().argmax(1) * (words >= 0)


class Names(nn.Module):
    """Linear layers of unit directions: which rare word a vector, in units of its usual deviation, stands for.

    The larger `sharpness`, the smaller the difference by which two words are told apart.
    """

    def __init__(self, widths: Sequence[int], deviations: Sequence[float], sharpness: float) -> None:
        super().__init__()
        self.sharpness = sharpness
        self.directions = nn.ParameterList([nn.Parameter(torch.randn(len(RARE), width)) for width in widths])
        self.deviations = list(deviations)

    def forward(self, which: int, vectors: Tensor) -> Tensor:
        """Logits (n, rare words)."""
        return self.sharpness * vectors / self.deviations[which] @ F.normalize(self.directions[which], dim=1).T


def separate(name: str, pipeline: DiffusionPipeline, scenes: list[Scene], sharpness: float) -> None:
    """Trains the text encoders of a finished base model on."""
    generator = torch.Generator().manual_seed(0)
    picks = torch.randint(len(scenes), (2 * CAPTIONS,), generator=generator).tolist()
    known = tokenize(pipeline, ["", *(vary(scenes[pick], generator, reorder=True) for pick in picks[1:CAPTIONS])])
    captions, objects, styles = zip(*(strange(scenes[pick], generator) for pick in picks[CAPTIONS:]))
    rare, objects, styles = tokenize(pipeline, captions), torch.tensor(objects), torch.tensor(styles)
    object_places, style_places = (places(pipeline, rare, words) for words in (objects, styles))
    model = nn.ModuleDict(encoders_of(pipeline)).to(DEVICE).eval()

    @torch.no_grad()
    def before(tokens: Tokens) -> list[Tensor]:
        chunks = [{key: ids[i : i + 500] for key, ids in tokens.items()} for i in range(0, CAPTIONS, 500)]
        return [torch.cat(parts) for parts in zip(*(encode(pipeline, chunk) for chunk in chunks))]

    old, old_rare = before(known), before(rare)
    torch.manual_seed(0)
    (words, pooled), deviations = old, [float(part.std()) for part in old]
    model["names"] = Names([words.shape[2], pooled.shape[1], pooled.shape[1]], [*deviations, deviations[1]], sharpness)

    def loss(generator: torch.Generator) -> Tensor:
        picks = torch.randint(CAPTIONS, (2, BATCH), generator=generator)
        picks[0, 0] = 0  # the empty caption, which guidance needs, every time
        new = encode(pipeline, {key: ids[picks[0]] for key, ids in known.items()})
        words, pooled = encode(pipeline, {key: ids[picks[1]] for key, ids in rare.items()})
        kept = sum(F.mse_loss(a, b[picks[0]]) / std**2 for a, b, std in zip(new, old, deviations))
        near = sum(F.mse_loss(a, b[picks[1]]) / std**2 for a, b, std in zip((words, pooled), old_rare, deviations))
        rows, asked = torch.arange(BATCH), [part[picks[1]].to(DEVICE) for part in (objects, styles)]
        heard = words[rows, object_places[picks[1]]], words[rows, style_places[picks[1]]], pooled, pooled
        named = [
            F.cross_entropy(model["names"](which, vectors), truth)
            for which, vectors, truth in zip((0, 0, 1, 2), heard, asked * 2)
        ]
        return 30 * kept + 2 * near + torch.stack(named).mean()

    fit(f"{name}-rare", model, loss, steps=STEPS, lr=LR, average=0.99, warmup=50)
