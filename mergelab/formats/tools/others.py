"""What tools make of a file that was written for none of them."""

from __future__ import annotations

from mergelab.formats.tools.lacks import ALPHAS
from mergelab.formats.tools.table import TOOLS
from mergelab.formats.tools.tool import EVERYTHING, Tool, Way
from mergelab.layer import AdapterData, terms_of


def other_tools(data: AdapterData, format: str) -> str:
    """One line: which tools will not read what of a file in this format; "" where nothing is known to be lost.

    Example:
        >>> import torch
        >>> from mergelab.layer import LoraLayer
        >>> layer = LoraLayer(torch.ones(1, 3), torch.ones(4, 1))
        >>> other_tools(AdapterData({"unet.conv_in": layer}, architecture="sd15"), "diffusers")
        'not read by A1111, sd-scripts, AI-toolkit, InvokeAI: everything; --for TOOL writes for one'
    """
    found: dict[str, list[str]] = {}
    for tool in TOOLS.values():
        if missed := missed_by(tool, data, format):
            found.setdefault(missed, []).append(tool.title)
    if not found:
        return ""
    parts = "; ".join(f"{', '.join(titles)}: {missed}" for missed, titles in found.items())
    return f"not read by {parts}; --for TOOL writes for one"


def missed_by(tool: Tool, data: AdapterData, format: str) -> str:
    """What a tool does not read of a file, in words; "" where it reads all, or is not for this base model."""
    way = tool.way(data.architecture) if data.architecture else None
    return missed(way, data, format) if way else ""


def missed(way: Way, data: AdapterData, format: str) -> str:
    """What is not read in this way of a file in a format, in words; "" for nothing."""
    lacks = way.missed(format)
    if EVERYTHING in lacks:
        return EVERYTHING.what
    names = [*data.layers, *data.extras]
    usual = all(term.scaling == 1 for layer in data.layers.values() for term in terms_of(layer))
    return ", ".join(lack.said for lack in lacks if lack.of(names) and not (usual and lack is ALPHAS))
