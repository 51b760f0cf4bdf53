"""What each tool reads of a file as it is, and of what is written for it; by the table of tools, and nothing else."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mergelab.errors import MergelabError
from mergelab.formats.layout import Layout
from mergelab.formats.planning import check_writable, written_keys
from mergelab.formats.tools import TOOLS, Tool, Way, missed
from mergelab.layer import AdapterData


@dataclass(frozen=True)
class Reading:
    """What becomes of an adapter in a tool.

    Attributes:
        tool, title: on the command line, and as people write it.
        missed: what the tool does not read of the file as it is: "" for nothing, None where that is not known.
        left_out: what has no place in a file that is written for the tool: "" for nothing, None where none can be.
    """

    tool: str
    title: str
    missed: str | None
    left_out: str | None


def readings(data: AdapterData, keys: Iterable[str]) -> list[Reading]:
    """What becomes of an adapter in every tool.

    Args:
        data: the adapter.
        keys: of its file: the table speaks of files with the keys that mergelab writes, and is asked for no others.

    Example:
        >>> import torch
        >>> from mergelab.layer import LoraLayer
        >>> layer = LoraLayer(torch.ones(1, 3), torch.ones(4, 1))
        >>> data = AdapterData({"unet.conv_in": layer}, architecture="sd15", dialect="kohya")
        >>> found = {one.tool: one for one in readings(data, ["lora_unet_conv_in.lora_down.weight"])}
        >>> found["comfyui"].missed, found["peft"].left_out
        (None, '')
    """
    format = data.dialect if data.dialect and _is_usual(data, data.dialect, keys) else None
    return [_reading(data, tool, format) for tool in TOOLS.values()]


def _reading(data: AdapterData, tool: Tool, format: str | None) -> Reading:
    way = tool.way(data.architecture)
    if way is None:
        return Reading(tool.name, tool.title, None, None)
    found = missed(way, data, format) if format and _tells(way, data, format) else None
    if found == "":
        return Reading(tool.name, tool.title, "", "")
    try:
        check_writable([data], for_=tool.name)
    except MergelabError:
        return Reading(tool.name, tool.title, found, None)
    names = [*data.layers, *data.extras]
    left_out = ", ".join(lack.what for lack in way.lacks if not lack.kept and lack.of(names))
    return Reading(tool.name, tool.title, found, left_out)


def _tells(way: Way, data: AdapterData, format: str) -> bool:
    """Whether the table says something of a format: of one that it does not name only that it is not read."""
    return format in way.reads or (data.architecture is not None and way.layout.is_folder == Layout(format).is_folder)


def _is_usual(data: AdapterData, format: str, keys: Iterable[str]) -> bool:
    """Whether a file has the keys that one in this format has, its alphas apart."""
    try:
        written = written_keys(data, format)
    except MergelabError:
        return False
    return {key for key in keys if not key.endswith(".alpha")} == {key for key in written if not key.endswith(".alpha")}
