"""Arithmetic on all layers: single-threaded kernels in as many threads as torch was to use, and the same numbers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import mergelab as ml
from mergelab.engine.changes import collect
from mergelab.formats.tools.fitting import norm_share
from mergelab.linalg.workspace import each_layer
from mergelab.publishing import exhibits
from tests.synthetic import adapter

LARGE: dict[str, tuple[int, ...]] = {
    "unet.mid_block.attentions.0.proj_in": (700, 600),
    "unet.up_blocks.0.resnets.0.conv1": (400, 60, 3, 3),
    "unet.up_blocks.1.resnets.0.conv1": (300, 60, 3, 3),
}


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """As `torch.set_num_threads` leaves them."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def test_each_layer_has_one_thread_for_its_kernels() -> None:
    """In other threads than the caller's; afterwards torch has as many as before."""
    meet = threading.Barrier(3, timeout=60)

    def seen(name: str) -> tuple[int, int]:
        meet.wait()  # only threads beside each other get past it
        return torch.get_num_threads(), threading.get_ident()

    with torch_threads(3):
        found = each_layer(seen, ["b", "a", "c", "a"])
        assert torch.get_num_threads() == 3
    assert list(found) == ["b", "a", "c"]
    kernels, idents = zip(*found.values())
    assert kernels == (1, 1, 1) and len({*idents, threading.get_ident()}) == 4


def test_a_loop_within_a_loop_opens_no_threads() -> None:
    """Those of the outer one are all that there are; the inner layers follow each other in the same one."""

    def within(_: str) -> set[int]:
        return {threading.get_ident(), *each_layer(lambda name: threading.get_ident(), "xyz").values()}

    with torch_threads(2):
        found = each_layer(within, "ab")
        assert [len(idents) for idents in found.values()] == [1, 1]


def test_with_one_thread_there_is_no_other() -> None:
    """Nor for a device that is no CPU, whose layers follow each other."""
    here = threading.get_ident()
    with torch_threads(1):
        assert set(each_layer(lambda name: threading.get_ident(), "ab").values()) == {here}
    with torch_threads(2):
        gpu = torch.device("cuda", 0)
        assert set(each_layer(lambda name: threading.get_ident(), "ab", gpu).values()) == {here}


def test_the_first_layer_in_order_is_the_one_that_fails() -> None:
    """Whichever thread is faster; and the threads come back."""

    def fails(name: str) -> None:
        raise ml.LayerError(name)

    with torch_threads(3):
        with pytest.raises(ml.LayerError, match="first"):
            each_layer(fails, ["first", "second", "third"])
        assert torch.get_num_threads() == 3


def test_neither_gradients_nor_autocast_get_in() -> None:
    """In any of the threads."""
    for count in (1, 2):
        with torch_threads(count), torch.autocast("cpu", dtype=torch.bfloat16):
            x = torch.ones(2, 2, requires_grad=True)
            found = each_layer(lambda name, x=x: x @ x, "ab")
        assert {(y.dtype, y.requires_grad) for y in found.values()} == {(torch.float32, False)}


def _resized(a: ml.Adapter, b: ml.Adapter, rank: Any) -> Any:
    small = a.resize(rank)
    factors = [x.numpy().tobytes() for layer in small.layers.values() for x in (layer.lora_A, layer.lora_B)]
    return factors, small.report.to_frame().to_dict()


WORK: dict[str, Callable[[ml.Adapter, ml.Adapter], Any]] = {
    "norm": lambda a, b: a.norm(),
    "inner": lambda a, b: a.inner(b),
    "cosine": lambda a, b: a.cosine(b),
    "resize": lambda a, b: _resized(a, b, 2),
    "resize by a budget": lambda a, b: _resized(a, b, "mean=2"),
    "compare": lambda a, b: ml.compare(a, b).to_dict(),
    "share of the norm": lambda a, b: norm_share(a, list(a.layers)[:1]),
    "collect": lambda a, b: list(collect([a, b]).by_tensor),
}


@pytest.mark.parametrize("name", WORK)
def test_any_number_of_threads_gives_the_same(name: str) -> None:
    """To the last bit."""
    a, b = adapter(41, shapes=LARGE), adapter(42, shapes=LARGE)
    found = []
    for count in (1, 3):
        with torch_threads(count):
            found.append(WORK[name](a, b))
    assert repr(found[0]) == repr(found[1])


def test_files_and_their_distance_are_the_same(tmp_path: Path) -> None:
    """What a save says of its cast, and how far a pushed file is from one that was drawn."""
    a = adapter(43, shapes=LARGE)
    found = []
    for count in (1, 3):
        with torch_threads(count):
            path = a.resize(3).save(tmp_path / f"{count}.safetensors", dtype="bfloat16")
            found.append((path.read_bytes(), exhibits._distance(path, a)))
    assert found[0] == found[1]


@pytest.mark.parametrize("count", [1, 3])
def test_values_that_are_none_are_found_in_any_thread(count: int) -> None:
    """The layer is named, the first that there is."""
    bad = adapter(44)
    names = list(bad.layers)
    for name in names[1:3]:
        bad.layers[name].lora_B[0, 0] = torch.nan
    with torch_threads(count):
        for work in (bad.norm, lambda: collect(bad), lambda: bad.resize(2), lambda: ml.compare(bad, bad)):
            with pytest.raises(ml.LayerError, match=names[1]):
                work()
