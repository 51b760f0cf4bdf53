"""Draws the reference pictures of the small models' adapters: `python -m experiments.published.photographs`.

A subject is shown plainly in four scenes, a style on four objects; they stand in for the photographs that published
tables compare with.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from mergelab import miniature

FOLDER = Path(__file__).parent / "photographs"
COUNT = 4


def shown() -> list[miniature.MiniatureAdapter]:
    """The adapters that have pictures: subjects and styles at their usual strength; both small models know the same."""
    known = miniature.adapters("sdxl")
    return [adapter for adapter in known if adapter.kind in ("subject", "style") and adapter.strength == 1]


def scenes(adapter: miniature.MiniatureAdapter) -> list[miniature.Scene]:
    """What the pictures of one adapter show.

    Example:
        >>> ghost = miniature.adapters("sdxl")[0]
        >>> [scene.object for scene in scenes(ghost)]
        ['ghost', 'ghost', 'ghost', 'ghost']
    """
    if adapter.kind == "subject":
        return miniature.sample(COUNT, 0, objects=[adapter.name])
    return miniature.sample(COUNT, 0, styles=[adapter.name])


def main() -> None:
    """Four PNG files in a folder for each adapter."""
    for adapter in shown():
        folder = FOLDER / adapter.name
        folder.mkdir(parents=True, exist_ok=True)
        for number, picture in enumerate(miniature.draw(scenes(adapter))):
            pixels = (picture * 255).round().byte().permute(1, 2, 0).numpy()
            Image.fromarray(pixels).save(folder / f"{number}.png", optimize=True)


if __name__ == "__main__":
    main()
