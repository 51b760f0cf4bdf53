"""Trains the adapters that the published tables use: one call of diffusers' own script for each subject and style.

    python -m experiments.published.train_loras ssr --scripts diffusers/examples/dreambooth --dry-run

prints the commands; without `--dry-run` they are run, one after the other, and an adapter that is there already is
left alone. What was trained lies where the configurations beside this file look for it. No trainer is written here:
`train_dreambooth_lora_flux.py` and `train_dreambooth_lora_sdxl.py` are diffusers' (its arguments as of August 2026).
"""

from __future__ import annotations

import argparse
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.published.catalogue import DREAMBOOTH, RECIPES, STYLEDROP, STYLES, SUBJECTS, Recipe

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Job:
    """One adapter: its name, its prompt, a folder of images, and the folder that it is written to."""

    recipe: Recipe
    name: str
    prompt: str
    images: Path
    output: Path

    @property
    def done(self) -> bool:
        """Whether it has been trained."""
        return (self.output / "pytorch_lora_weights.safetensors").is_file()

    def command(self, scripts: Path) -> list[str]:
        """The call of diffusers' script.

        Example:
            >>> job = Job(RECIPES["ssr"], "dog", "a sks dog", Path("data/dog"), Path("loras/ssr/dog"))
            >>> job.command(Path("dreambooth"))[:4]
            ['accelerate', 'launch', 'dreambooth/train_dreambooth_lora_flux.py', '--rank=32']
        """
        own = {
            "pretrained_model_name_or_path": self.recipe.base,
            "instance_prompt": self.prompt,
            "instance_data_dir": str(self.images),
            "output_dir": str(self.output),
        }
        given = {**self.recipe.options, **own}
        arguments = [f"--{key}" if value is None else f"--{key}={value}" for key, value in given.items()]
        return ["accelerate", "launch", (scripts / self.recipe.script).as_posix(), *arguments]


def jobs(recipe: str, data: Path, out: Path) -> list[Job]:
    """The adapters of a recipe, subjects first.

    Example:
        >>> [job.prompt for job in jobs("klora", Path("data"), Path("loras"))][-2:]
        ['a Viking face with beard in szn style', 'a person drowning into the phone in szn style']
    """
    own = RECIPES[recipe]
    subjects = [
        Job(own, name, f"a {own.token} {SUBJECTS[name]}", data / "dreambooth" / "dataset" / name, out / recipe / name)
        for name in own.subjects
    ]
    styles = [
        Job(own, name, own.style.format(object=style.object, words=style.words), data / "styles" / name,
            out / recipe / name)
        for name, style in STYLES.items() if own.style
    ]  # fmt: skip
    return subjects + styles


def prepare(data: Path) -> None:
    """Puts each image of StyleDrop into a folder of its own, where it is both what is trained on and the reference.

    Raises:
        FileNotFoundError: DreamBooth's or StyleDrop's images are not there; the sentence says how to get them.
    """
    for folder, address in ((data / "dreambooth", DREAMBOOTH), (data / "StyleDrop-PyTorch", STYLEDROP)):
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder}: the images are not there; git clone {address} {folder}")
    for name, style in STYLES.items():
        place = data / "styles" / name / style.file
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(data / "StyleDrop-PyTorch" / "data" / style.file, place)


def chosen(every: Sequence[Job], names: Iterable[str]) -> list[Job]:
    """Those of these names, all where none is given.

    Raises:
        ValueError: there is no such adapter in the recipe.
    """
    names = list(names)
    if strange := [name for name in names if name not in {job.name for job in every}]:
        raise ValueError(f"there is no {strange[0]!r} in this recipe; known: {', '.join(job.name for job in every)}")
    return [job for job in every if not names or job.name in names]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; 2 where something is missing, else what the training script returns."""
    parser = argparse.ArgumentParser(prog="python -m experiments.published.train_loras", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("recipe", choices=sorted(RECIPES), help="ssr; ziplora; klora (of K-LoRA and NP-LoRA)")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="these subjects and styles alone")
    parser.add_argument("--data", type=Path, default=HERE / "data", help="where the clones with the images lie")
    parser.add_argument("--out", type=Path, default=HERE / "loras", help="where adapters go")
    parser.add_argument("--scripts", type=Path, default=Path("diffusers/examples/dreambooth"),
                        help="examples/dreambooth of a clone of diffusers")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="print the commands, train nothing")
    given = parser.parse_args(arguments)
    try:
        todo = chosen(jobs(given.recipe, given.data, given.out), given.only)
        if not given.dry_run:
            prepare(given.data)
    except (FileNotFoundError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    for job in todo:
        command = job.command(given.scripts)
        print(shlex.join(command))
        if not given.dry_run and not job.done and (code := subprocess.run(command, check=False).returncode):
            return code
    return 0


if __name__ == "__main__":
    sys.exit(main())
