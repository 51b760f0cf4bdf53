"""Sources and targets: what `load` takes, what is written whole or not at all, where a message gets its file's name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import mergelab as ml
from mergelab.formats.files import replacing, replacing_folder
from mergelab.formats.messages import about

PAIR = {"unet.conv_in.lora_A.weight": torch.ones(2, 3), "unet.conv_in.lora_B.weight": torch.ones(4, 2)}


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.rglob("*"))


def test_miniature_adapters_load_by_name() -> None:
    """The name that configurations and the command line have for them."""
    adapter = ml.load("miniature/sdxl/ghost")
    assert adapter.name == "ghost"
    assert adapter.is_file
    assert len(adapter.layers) == len(ml.load(adapter.inputs[0]).layers)
    assert ml.merge(["miniature/flux/ghost", "miniature/flux/sea"]).layers


@pytest.mark.parametrize(
    ("name", "needle"),
    [
        ("miniature/sdxl/host", "there is no miniature adapter 'miniature/sdxl/host'; known: ghost, "),
        ("miniature/sd/ghost", "unknown miniature pipeline 'sd'; known: 'sdxl', 'flux'"),
    ],
)
def test_unknown_miniature_adapters(name: str, needle: str) -> None:
    """The message lists those that there are."""
    with pytest.raises(ml.OptionError) as caught:
        ml.load(name)
    assert str(caught.value).startswith(needle)


def test_a_real_path_of_a_miniature_name_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What lies there is what is meant."""
    monkeypatch.chdir(tmp_path)
    folder = Path("miniature/sdxl")
    folder.mkdir(parents=True)
    ml.load(PAIR).save(folder / "ghost.safetensors")
    (folder / "ghost.safetensors").rename(folder / "ghost")
    assert list(ml.load("miniature/sdxl/ghost").layers) == ["unet.conv_in"]


def test_a_message_names_its_file_once(tmp_path: Path) -> None:
    """Whatever is raised below begins with the file, and keeps its type and where it was raised."""
    with pytest.raises(ml.LayerError, match=r"^style: 'a': too long$") as caught, about("style"), about(repr("a")):
        raise ml.LayerError("too long")
    assert caught.traceback[-1].name == test_a_message_names_its_file_once.__name__
    path = tmp_path / "half.safetensors"
    ml.load(PAIR).save(path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ml.FormatError) as refused:
        ml.load(path)
    assert str(refused.value).count(str(path)) == 1


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    """Success, any failure, and a system that refuses."""
    path = tmp_path / "a.txt"
    for text in ("one", "two"):
        with replacing(path) as temporary:
            temporary.write_text(text)
            assert not path.exists() or path.read_text() == "one"
        assert path.read_text() == text
    with pytest.raises(KeyboardInterrupt), replacing(path) as temporary:
        temporary.write_text("half")
        raise KeyboardInterrupt
    with pytest.raises(ml.OutputError, match=r"nowhere.*cannot be written: No such file.*nothing was changed"):  # noqa: SIM117
        with replacing(tmp_path / "nowhere" / "a.txt") as temporary:
            temporary.write_text("half")
    assert path.read_text() == "two"
    assert names_in(tmp_path) == ["a.txt"]


def test_a_folder_is_replaced_whole_or_not_at_all(tmp_path: Path) -> None:
    """The old one stays until the new one is whole, and comes back where that cannot take its place."""
    folder = tmp_path / "peft"
    for name in ("old.txt", "new.txt"):
        with replacing_folder(folder, {"old.txt", "new.txt"}) as temporary:
            (temporary / name).write_text(name)
        assert names_in(tmp_path) == [name, "peft"]
    with pytest.raises(ZeroDivisionError), replacing_folder(folder, {"new.txt"}) as temporary:
        (temporary / "half.txt").write_text("half")
        raise ZeroDivisionError
    with pytest.raises(ml.OutputError, match="cannot be written"), replacing_folder(folder, {"new.txt"}) as temporary:
        temporary.rmdir()
    assert names_in(tmp_path) == ["new.txt", "peft"]
    with pytest.raises(ml.OutputError, match=r"holds new.txt, which would be lost"), replacing_folder(folder, set()):
        pass


@pytest.mark.parametrize("letter", ["x", "é", "図"])
def test_the_longest_names_are_written(letter: str, tmp_path: Path) -> None:
    """A name as long as a file system allows, 255 bytes, leaves no room for a longer one beside it."""
    ending = ".safetensors"
    name = letter * ((255 - len(ending)) // len(letter.encode())) + ending
    assert ml.load(PAIR).save(tmp_path / name).exists()
    assert names_in(tmp_path) == [name]
