"""What an adapter can do about the Hugging Face Hub: `Publishable`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import torch

from mergelab.checks import short_repr
from mergelab.errors import OptionError
from mergelab.formats import Savable, check_choice, to_dtype
from mergelab.formats.tools import PACKED
from mergelab.publishing.base_models import check_base_model
from mergelab.publishing.hub import Pushed
from mergelab.publishing.pushing import Destination
from mergelab.publishing.staging import Request, Staged, stage


@dataclass(frozen=True, eq=False)
class Publishable(Savable):
    """An adapter that can be pushed to the Hugging Face Hub."""

    @property
    def is_file(self) -> bool:
        """Whether this is a file as it was read."""
        return False

    def push_to_hub(
        self,
        repo: str,
        *,
        private: bool | None = None,
        token: str | None = None,
        commit_message: str | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        format: str | None = None,
        dtype: torch.dtype | str | None = None,
        for_: str | None = None,
        run: str | os.PathLike[str] | None = None,
        base_model: str | None = None,
        license: str | None = None,
        card: bool = True,
        overwrite: bool = False,
        folder: str | os.PathLike[str] | None = None,
    ) -> Pushed:
        """Push the adapter to the Hugging Face Hub, with a model card, in one commit.

        An adapter that was read from a file is pushed byte for byte, unless a format, a tool or a dtype is given. A
        README.md that is there keeps what its owner wrote outside of mergelab's part; one without such a part is not
        touched: the push is refused. Header and card name the inputs that were loaded from the Hub: their repositories'
        names too, of which some may be private.

        Args:
            repo: "user/repo", "user/repo@revision", or "repo" of your own account; made where there is none.
            private: whether a new repository is; None leaves it to the account's settings. One that exists and is
                otherwise is an error.
            token: of the Hub; None: that of `hf auth login`, or HF_TOKEN.
            commit_message: "Upload LoRA with mergelab" unless given.
            revision: a branch, made where there is none.
            create_pr: open a pull request.
            format, dtype, for_: as for `save`.
            run: the folder of an evaluation that drew what is pushed: its pictures and scores go into the card.
            base_model: its name on the Hub; by default the pipeline of the run, or the usual one of the family.
            license: of the adapter, for the card, which names none otherwise.
            card: False pushes no README.md.
            overwrite: whether other files under the same names may be replaced, and a README.md by another hand.
            folder: write there, into a new or empty folder, what would lie in a new repository, and push nothing.

        Returns:
            The address, the files and what there is to say of them.

        Raises:
            OptionError: an option that does not exist or contradicts another; the run drew another adapter, or more of
                it than the file of a tool has a place for.
            OutputError: no token, no permission, no connection; something that is there would be replaced.
            SourceError: the folder of the run holds none.
            FormatError, ArchitectureError: as `save`.

        Example:
            >>> import tempfile
            >>> import mergelab as ml
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     pushed = ml.load("miniature/sdxl/ghost").push_to_hub("user/ghost", folder=f"{folder}/ghost")
            >>> list(pushed.files)
            ['ghost.safetensors', 'README.md']
        """
        check_choice(format, for_)
        if format == PACKED.name:
            raise OptionError(
                f"format={format!r}: a packed file is for one quantised model alone; push with for_='nunchaku' "
                "(--for nunchaku), which nunchaku reads with any of them"
            )
        to_dtype(dtype)
        check_base_model(base_model)
        _check_license(license)
        message = commit_message or "Upload LoRA with mergelab"
        to = Destination(repo, revision, "model", private, token, create_pr, overwrite, card, message)
        to = to.named(on_the_hub=folder is None)
        request = Request(to.repo, to.revision, format, dtype, for_, base_model, license, run, card)
        readable = all(path.suffix in (".safetensors", ".json") for path in self.inputs)
        sources = self.inputs if self.is_file and readable else ()

        def make(place: Path) -> Staged:
            return stage(self, sources, place, request)

        return to.push(make) if folder is None else to.write(make, Path(folder))


def _check_license(license: object) -> None:
    if license is not None and not (isinstance(license, str) and re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", license)):
        raise OptionError(
            f"license={short_repr(license)}: expected an identifier of the Hugging Face Hub in small letters, such as "
            "'mit', 'apache-2.0', 'openrail++' or 'other'"
        )
