"""How a published file is used, as Python that runs."""

from __future__ import annotations

import json
from dataclasses import dataclass

from mergelab.formats.fetching.hub import Reference
from mergelab.formats.tools import TOOLS
from mergelab.formats.tools.tool import EVERYTHING
from mergelab.layer import AdapterData
from mergelab.publishing.base_models import BaseModel


@dataclass(frozen=True)
class Place:
    """Where the weights lie.

    Attributes:
        repo: `user/repo`.
        revision: None for the main branch.
        file: of the weights in it, "" for a folder of PEFT.
        folders: component -> its folder of PEFT in the repository, "" for the repository itself.
    """

    repo: str
    revision: str | None
    file: str
    folders: dict[str, str]

    @property
    def name(self) -> str:
        """As `mergelab.load` takes it."""
        return str(Reference(self.repo, self.revision, self.file))


def usage(data: AdapterData, format: str | None, place: Place, base: BaseModel, prompt: str) -> str:
    """Python that draws with the adapter: with diffusers or PEFT where they read all of the file, else with mergelab.

    Args:
        data: what the file holds.
        format: that it is in; None where it is none of those that are written.
        place: where it lies.
        base: the model that it is for; without a name the adapter is loaded, and no image drawn.
        prompt: what is drawn.
    """
    if not base.name or not base.task:
        return f"import mergelab as ml\n\nadapter = ml.load({_text(place.name)})\nprint(adapter)"
    head, lines = _opened(base)
    if format == "peft" and place.folders:
        head.append("from peft import PeftModel")
        for component, folder in place.folders.items():
            where = _keywords(subfolder=folder, revision=place.revision)
            lines.append(f"pipe.{component} = PeftModel.from_pretrained(pipe.{component}, {_text(place.repo)}{where})")
    # Converters know published sizes.
    elif not not_read(data, format) and (format == "diffusers" or not base.miniature):
        where = _keywords(weight_name=place.file, revision=place.revision)
        lines.append(f"pipe.load_lora_weights({_text(place.repo)}{where})")
    else:
        head.append("import mergelab as ml")
        lines.append(f"ml.fuse(pipe, {_text(place.name)})")
    settings = f", **miniature.settings({_text(base.miniature)})" if base.miniature else ""
    call = f"pipe({_text(prompt)}{settings})"
    if base.task == "text-to-video":
        head.append("from diffusers.utils import export_to_video")
        lines += [f'export_to_video({call}.frames[0], "video.mp4")']
    else:
        lines += [f"image = {call}.images[0]", 'image.save("image.png")']
    return "\n".join([*sorted(head, key=lambda line: line.startswith("from")), "", *lines])


def not_read(data: AdapterData, format: str | None) -> str:
    """What a pipeline of diffusers does not read of a file, in words; "" where it reads all."""
    way = TOOLS["diffusers"].way(data.architecture)
    lacks = way.missed(format) if way and format else (EVERYTHING,)
    if EVERYTHING in lacks or format == "peft":
        return EVERYTHING.what
    return ", ".join(lack.said for lack in lacks if lack.of([*data.layers, *data.extras]))


def tools_for(data: AdapterData) -> dict[str, str]:
    """Name -> title of the other tools that a file can be written for."""
    others = (tool for tool in TOOLS.values() if tool.name not in ("diffusers", "peft"))
    return {tool.name: tool.title for tool in others if data.architecture and tool.way(data.architecture)}


def _opened(base: BaseModel) -> tuple[list[str], list[str]]:
    """Imports, and the lines that open the pipeline."""
    if base.miniature:
        return ["from mergelab import miniature"], [f"pipe = miniature.pipeline({_text(base.miniature)})"]
    opened = f"pipe = DiffusionPipeline.from_pretrained({_text(base.name)}, torch_dtype=torch.bfloat16)"
    return ["import torch", "from diffusers import DiffusionPipeline"], [opened, 'pipe.to("cuda")']


def _keywords(**given: str | None) -> str:
    return "".join(f", {name}={_text(value)}" for name, value in given.items() if value)


def _text(value: str) -> str:
    """A literal of Python, which ends no block of Markdown."""
    return json.dumps(value, ensure_ascii=False).replace("```", "\\u0060" * 3)
