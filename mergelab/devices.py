"""Where to compute: the device that is named, or the one that a rule chooses; and how much of its memory to use."""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from functools import cache
from numbers import Integral

import torch

from mergelab.checks import plain_number, short_repr
from mergelab.errors import OptionError

Device = torch.device | str | None
"""As it is asked for: "auto" (or None), or a device of torch's, or its name."""

AUTO, CPU = "auto", torch.device("cpu")

# Work is counted in units of what Gram matrices of stacked factors cost (see `layer_work`); two cores do 9e9 of them a
# second (svd on FLUX.1, benchmarks). A GPU needs a few seconds for its context, its libraries, and the way there and
# back: with less work than this a CPU is done by then. Four adapters of rank 32 for FLUX.1 or SDXL are more by any
# method, and so are two of any rank where the rule sees dense changes.
WORTH = 4e10
# An entry of a dense change in these units: TIES takes 7.3 ns for each entry and adapter where a unit takes 0.11 ns.
OF_AN_ENTRY = 64.0
# What is computed layer by layer keeps a GPU waiting for the host, and is faster on that: no such work is worth it.
LAYER_BY_LAYER = 0.0

# A batch may have the smaller of these two, a share of what is free and what is more than enough to keep a GPU busy. A
# GPU with less than LEAST, room for a few dense changes of FLUX.1's largest layer, is left to whatever fills it.
SHARE, MOST, LEAST = 0.8, 10 << 30, 1 << 30

_LOG = logging.getLogger("mergelab")
_SIZE = re.compile(r"([\d.]+)\s*(?:([MGT])(i?)B)?", re.ASCII | re.IGNORECASE)
_SMALLEST = 1 << 20  # what is below is a number of gigabytes without its unit


def chosen_device(device: Device, work: float) -> torch.device:
    """The device that computes.

    Args:
        device: "auto" or None: a GPU by CUDA or ROCm, where there is one with room and the work is worth it, else the
            CPU. One that is named is taken, whatever the work; for "mps" that is the CPU, since the arithmetic needs
            float64, which does not exist there: said once, as a warning.
        work: as `layer_work` counts it, of all layers together.

    Raises:
        OptionError: the device that is named does not exist, or not here.

    Example:
        >>> chosen_device("cpu", work=1e15), chosen_device("auto", work=1e6)
        (device(type='cpu'), device(type='cpu'))
    """
    if device is None or device == AUTO:
        return _gpu_with_room() if work >= WORTH and torch.cuda.is_available() else CPU
    if str(device).partition(":")[0] == "mps" and torch.backends.mps.is_available():
        _say_once(
            "device='mps': the arithmetic of a merge needs float64, which PyTorch does not have there; computed on the "
            "CPU, with the same result"
        )
        return CPU
    return usable_device(device)


def usable_device(device: torch.device | str) -> torch.device:
    """A device that tensors can be put on, with its number where there may be several.

    Raises:
        OptionError: there is no such device, or not here.
    """
    try:
        probe = torch.zeros(1, device=torch.device(device))
        probe.sum().item()
    except (RuntimeError, AssertionError, ValueError, TypeError, ImportError) as error:  # NotImplementedError, too
        here = [AUTO, "cpu", *(f"cuda:{i}" for i in range(torch.cuda.device_count()))]
        if torch.backends.mps.is_available():
            here.append("mps")
        found = short_repr(device if isinstance(device, str) else str(device))
        raise OptionError(f"device={found} cannot be used here; expected one of {', '.join(here)}") from error
    return probe.device


def _gpu_with_room() -> torch.device:
    """The current GPU; the CPU where something else fills it, a pipeline of this process too, or it cannot be used."""
    try:
        gpu = torch.device("cuda", torch.cuda.current_device())
        free = free_bytes(gpu)
    except RuntimeError as error:
        _say_once(f"there is a GPU, and it cannot be used ({str(error).splitlines()[0]}): computed on the CPU")
        return CPU
    return gpu if free >= LEAST else CPU


def free_bytes(gpu: torch.device) -> int:
    """Bytes of a GPU that nothing uses: what is free, and what torch has reserved and does not use."""
    reserved = torch.cuda.memory_reserved(gpu) - torch.cuda.memory_allocated(gpu)
    return torch.cuda.mem_get_info(gpu)[0] + reserved


@cache
def _say_once(sentence: str) -> None:
    _LOG.warning(sentence)


def layer_work(shape: Sequence[int], ranks: Sequence[int], dense: bool) -> float:
    """How much work the merge of one layer is, in the units of `WORTH`.

    Args:
        shape: of the weight that is changed, `(out, in[, kh, kw])`.
        ranks: of the changes that are merged.
        dense: whether the rule sees dense changes: `64 * out * in` for each of them; else it is `(out + in)` times the
            square of the summed rank.

    Example:
        >>> layer_work((3072, 3072), [32, 32], dense=False), layer_work((3072, 3072), [32, 32], dense=True)
        (25165824.0, 1207959552.0)
    """
    out, columns = shape[0], math.prod(shape[1:])
    return OF_AN_ENTRY * out * columns * len(ranks) if dense else float((out + columns) * sum(ranks) ** 2)


def parsed_memory(memory: object) -> int | None:
    """An amount of memory in bytes; None stays None.

    Args:
        memory: bytes, or a text with a unit: "8GB" (8e9 bytes), "8 GiB" (8 * 2**30), "512MB".

    Raises:
        OptionError: it is neither, or less than 1 MiB.

    Example:
        >>> parsed_memory("8GB"), parsed_memory("1.5 GiB"), parsed_memory(1 << 30), parsed_memory(None)
        (8000000000, 1610612736, 1073741824, None)
    """
    if memory is None:
        return None
    found = -1
    if isinstance(memory, Integral) and not isinstance(memory, bool):
        found = int(memory)
    elif isinstance(memory, str) and (parts := _SIZE.fullmatch(memory.strip())):
        number, prefix, binary = parts.groups()
        try:
            factor = (1024 if binary else 1000) ** ("MGT".index(prefix.upper()) + 2) if prefix else 1
            found = int(plain_number(number) * factor)
        except (ValueError, OverflowError):  # two points, or more than there are numbers
            found = -1
    if found < _SMALLEST:
        raise OptionError(
            f"memory={short_repr(memory)}: expected at least 1 MiB, with a unit ('8GB', '512 MiB'), or as a number of "
            "bytes"
        )
    return found


def memory_budget(device: torch.device, memory: int | None = None) -> int:
    """How many bytes the batches of a merge may take on a device; at least one layer is computed, whatever it takes.

    Args:
        device: that computes. On a CPU the budget is 0: a batch is one layer of one thread.
        memory: the budget, as `parsed_memory` returns it; None: 80 % of what is free on the GPU, or reserved by torch
            and not in use, but no more than 10 GiB.

    Example:
        >>> memory_budget(torch.device("cpu"), 1 << 30)
        0
    """
    if device.type == "cpu":
        return 0
    return min(int(SHARE * free_bytes(device)), MOST) if memory is None else memory
