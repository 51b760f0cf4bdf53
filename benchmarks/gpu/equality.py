"""What a device computes beside what the CPU computes: merges, masks of DARE, comparisons, resizing."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

import mergelab as ml
from benchmarks.gpu.merging import ADAPTERS
from benchmarks.gpu.session import Found, Session
from benchmarks.synthetic import factors
from mergelab.linalg.draws import EntryDraws, key_of

METHODS: Mapping[str, dict[str, Any]] = {
    "svd": {"method": "svd"},
    "cat": {"method": "cat"},
    "ties": {"method": "ties"},
    "dare": {"method": "dare"},
    "dare_ties": {"method": "dare_ties"},
    "magnitude_prune": {"method": "magnitude_prune"},
    "ties core": {"method": "ties", "space": "core"},
    "ties knots": {"method": "ties", "space": "knots"},
    "dare core": {"method": "dare", "space": "core"},
}
EQUAL = 1e-4
"""The most that a layer may differ from the CPU's, in parts of its norm."""
WHOLE = {"unet.mid_block.attentions.0.proj_in": (320, 256), "unet.mid_block.attentions.0.proj_out": (192, 640)}
"""Layers so small that their whole merge is stored: no truncation comes between."""
KEYS = ((0, (3072, 3072)), (1, (12288, 3072)), (2, (640, 2560)), (3, (7, 5)))


def over_shapes(layers: Mapping[str, tuple[int, ...]], count: int) -> list[str]:
    """So many layers, some of every shape.

    Example:
        >>> over_shapes({"a": (1, 1), "b": (1, 1), "c": (2, 1)}, 2)
        ['a', 'c']
    """
    kinds = list(dict.fromkeys(layers.values()))
    each = math.ceil(count / len(kinds))
    alike = {shape: [name for name, own in layers.items() if own == shape] for shape in kinds}
    return [names[i * len(names) // min(each, len(names))] for names in alike.values()
            for i in range(min(each, len(names)))]  # fmt: skip


def merges(session: Session, arch: str, count: int) -> Found:
    """Largest relative difference of a layer's stored change, for every method, to the rank that is measured."""
    names = over_shapes(session.layers[arch], 4 if session.small else count)
    loras = [_only(ml.load(path), names) for path in session.files[arch]]
    return {"layers": len(names)} | _differences(session, loras, session.rank)


def whole_merges(session: Session) -> Found:
    """The same of layers that are stored whole, so that what a rule does to each entry is seen."""
    loras = [
        ml.load({
            f"{name}.lora_{part}.weight": factor
            for name, shape in WHOLE.items()
            for part, factor in zip("AB", factors(name, shape, session.rank, index))
        })
        for index in range(ADAPTERS)
    ]  # fmt: skip
    return _differences(session, loras, min(map(min, WHOLE.values())))


def _differences(session: Session, loras: list[ml.Adapter], rank: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    missed = []
    for title, given in METHODS.items():
        to = {} if title == "cat" else {"rank": rank}
        there, here = (ml.merge(loras, **given, **to, device=d, progress=False) for d in (session.device, "cpu"))
        if list(there.layers) != list(here.layers):
            raise AssertionError(f"{title}: other layers than on the CPU")
        worst = {name: _difference(there, here, name, session.device) for name in here.layers}
        layer = max(worst, key=lambda name: worst[name])
        found[title] = {"largest": worst[layer], "of": f"{layer} {here.layers[layer].shape}"}
        found[title]["retained_energy"] = abs(there.report.retained_energy - here.report.retained_energy)
        missed += [f"{title} differs by {worst[layer]:.2g}"] if worst[layer] > EQUAL else []
    return found | ({"missed": missed} if missed else {})


def _difference(there: ml.Adapter, here: ml.Adapter, name: str, device: str) -> float:
    first, second = (_dense(adapter, name, device) for adapter in (there, here))
    return float((first - second).norm() / second.norm())


def _dense(adapter: ml.Adapter, name: str, device: str) -> Tensor:
    b, a = adapter.matrices(name, device)
    return b.double() @ a.double()


def _only(adapter: ml.Adapter, names: list[str]) -> ml.Adapter:
    return replace(adapter, layers={name: adapter.layers[name] for name in names})


def masks(session: Session) -> Found:
    """Whether every bit of DARE's draws is the same, of whole matrices and of rows from the middle."""
    found = {}
    for key, (rows, columns) in KEYS:
        draws = EntryDraws(key_of(0, "layer", key))
        for part in (slice(0, rows), slice(rows // 3, rows // 2 + 1)):
            here, there = (draws.bits(part, columns, device).cpu() for device in ("cpu", session.device))
            found[f"{rows} x {columns}, rows {part.start} to {part.stop}"] = torch.equal(here, there)
    if not all(found.values()):
        raise AssertionError(f"other draws than on the CPU: {found}")
    return {"equal": len(found)}


def others(session: Session, arch: str) -> Found:
    """`compare` and `resize` on both, where they take a device."""
    names = over_shapes(session.layers[arch], 8)
    loras = [_only(ml.load(path), names) for path in session.files[arch][:2]]
    found: dict[str, Any] = {}
    if _takes_device(ml.compare):
        compare: Any = ml.compare
        there, here = (_numbers(compare(loras, device=d).to_dict()) for d in (session.device, "cpu"))
        pairs = {key: abs(there[key] - value) / max(abs(value), 1e-3) for key, value in here.items()}
        worst = max(pairs, key=lambda key: pairs[key])
        found["compare"] = {"largest": pairs[worst], "of": worst}
    if _takes_device(ml.Adapter.resize):
        resize: Any = loras[0].resize
        there, here = (resize(session.rank // 2, device=d) for d in (session.device, "cpu"))
        found["resize"] = max(_difference(there, here, name, session.device) for name in names)
    return found or {"compare and resize": "take no device"}


def _takes_device(function: Callable[..., Any]) -> bool:
    return "device" in inspect.signature(function).parameters


def _numbers(value: Any, path: str = "") -> dict[str, float]:
    """All numbers within a value of JSON, by where they stand."""
    if isinstance(value, (Mapping, list, tuple)):
        items = value.items() if isinstance(value, Mapping) else enumerate(value)
        return {key: number for k, v in items for key, number in _numbers(v, f"{path}/{k}").items()}
    return {path: float(value)} if isinstance(value, (int, float)) else {}
