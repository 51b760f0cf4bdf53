"""Reading one file after another: tensors mapped as the safetensors package has them, and nothing carried over."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import mergelab as ml
from mergelab.formats import keys, prefixes, recognising
from mergelab.formats.architectures import text_encoders
from mergelab.formats.architectures.naming import Naming
from mergelab.formats.mapped import DTYPES, mapped_tensors

MODULE = "unet.mid_block.attentions.0.transformer_blocks.0.attn1.to_k"


def written(path: Path, fill: float, rank: int = 4, inputs: int = 640, **strings: str) -> Path:
    """An adapter of one layer, whose names and shapes three base models may have."""
    factors = {"lora_A": torch.full((rank, inputs), fill), "lora_B": torch.full((inputs, rank), fill)}
    save_file({f"{MODULE}.{part}.weight": tensor for part, tensor in factors.items()}, path, strings or None)
    return path


def test_tensors_are_those_of_the_safetensors_package(tmp_path: Path) -> None:
    """Every dtype and any shape, at addresses that are no multiple of their size; in its order, each with a storage."""
    generator = torch.Generator().manual_seed(0)
    tensors = {"empty": torch.zeros(0, 3), "scalar": torch.tensor(2.5), "odd": torch.arange(3, dtype=torch.uint8)}
    for dtype in DTYPES:
        tensors[str(dtype)] = torch.randint(0, 2, (3, 1, 5), generator=generator).to(dtype)
    save_file(tensors, tmp_path / "x.safetensors", {"said": "ja"})
    found, strings = mapped_tensors(tmp_path / "x.safetensors")
    expected = load_file(tmp_path / "x.safetensors")
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert list(found) == list(file.keys())
    assert strings == {"said": "ja"}
    for key, tensor in expected.items():
        assert found[key].dtype == tensor.dtype and found[key].shape == tensor.shape
        assert torch.equal(found[key].float(), tensor.float())
        assert found[key].untyped_storage().nbytes() == tensor.numel() * tensor.element_size()


def test_what_is_done_to_a_tensor_never_reaches_its_file(tmp_path: Path) -> None:
    """Nor does the tensor of another reading see it; and it outlives the name of its file."""
    path = written(tmp_path / "a.safetensors", 1.0)
    before = path.read_bytes()
    first, second = (next(iter(mapped_tensors(path)[0].values())) for _ in range(2))
    first.zero_()
    assert path.read_bytes() == before and bool((second == 1).all())
    path.rename(tmp_path / "b.safetensors")
    assert bool((first == 0).all()) and bool((second == 1).all())


def test_files_of_the_same_names_have_their_own_values_shapes_and_headers(tmp_path: Path) -> None:
    """What is remembered of names depends on all that recognising looks at, in any order of reading."""
    given = {
        "plain": ({}, None),
        "sdxl": ({"ss_base_model_version": "sdxl_base_v1-0"}, "sdxl"),
        "sd15": ({"modelspec.architecture": "stable-diffusion-v1/lora"}, "sd15"),
        "wide": ({"inputs": 1280}, None),
    }
    paths = {
        name: written(tmp_path / f"{name}.safetensors", float(i), i + 1, **options)  # type: ignore[arg-type]
        for i, (name, (options, _)) in enumerate(given.items())
    }
    for _ in range(2):
        for i, (name, (options, architecture)) in enumerate(given.items()):
            adapter = ml.load(paths[name])
            layer = adapter.layers[MODULE]
            size = options.get("inputs", 640)
            assert adapter.architecture == architecture
            assert layer.rank == i + 1 and layer.shape == (size, size)
            assert bool((layer.lora_A == i).all())
    with pytest.raises(ml.MergelabError, match="architecture='flux'"):
        ml.load(paths["sdxl"], architecture="flux")
    assert ml.load(paths["plain"], architecture="sd2").architecture == "sd2"
    assert ml.load(paths["plain"]).architecture is None


def test_what_is_remembered_is_bounded_and_holds_no_tensor(tmp_path: Path) -> None:
    """The tensors of an adapter go with it."""
    adapter = ml.load(written(tmp_path / "a.safetensors", 1.0))
    tensor = weakref.ref(adapter.layers[MODULE].lora_A)
    del adapter
    gc.collect()
    assert tensor() is None
    of_names = (keys._named, prefixes._without_outer, text_encoders.kind, Naming.module, Naming.place)
    for cached in (*of_names, recognising._found):
        assert cached.cache_info().maxsize
