"""A run, pushed to the Hugging Face Hub as a dataset."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from mergelab.evaluation.dataset.staging import StagedRun, stage_run
from mergelab.publishing import Pushed
from mergelab.publishing.pushing import Destination


def destination(repo: str, on_the_hub: bool = True, **settings: Any) -> Destination:
    """Where a run goes, with its full name; the settings are those of a `Destination`.

    Raises:
        OptionError: `repo` is no name of a repository.
        OutputError: the Hub does not say whose it is.
    """
    message = settings.pop("message", None) or "Upload run with mergelab"
    return Destination(repo, kind="dataset", message=message, **settings).named(on_the_hub)


def push_run(
    run: str | os.PathLike[str],
    repo: str,
    *,
    private: bool | None = None,
    token: str | None = None,
    commit_message: str | None = None,
    revision: str | None = None,
    create_pr: bool = False,
    overwrite: bool = False,
    folder: str | os.PathLike[str] | None = None,
) -> Pushed:
    """Push a finished run to the Hugging Face Hub as a dataset, with a card, in one commit.

    It has the scores, which the viewer shows, the images with their prompts as ImageFolder reads them, the report,
    summary.json, results.json and the configuration without what opens an address. Adapters are not in it. A README.md
    that is there keeps what its owner wrote.

    Args:
        run: the run folder.
        repo: "user/repo", "user/repo@revision", or "repo" of your own account; made where there is none.
        private: whether a new repository is; None leaves it to the account's settings.
        token: of the Hub; None: that of `hf auth login`, or HF_TOKEN.
        commit_message: "Upload run with mergelab" unless given.
        revision: a branch, made where there is none.
        create_pr: open a pull request.
        overwrite: whether other files under the same names may be replaced, such as those of an earlier run.
        folder: write there, into a new or empty folder, what would lie in a new repository, and push nothing.

    Returns:
        The address, the files and what there is to say of them.

    Raises:
        OptionError: `repo` is no name of a repository.
        OutputError: no token, no permission, no connection; something that is there would be replaced.
        SourceError: the folder holds no finished run.
    """
    to = destination(
        repo, folder is None, revision=revision, private=private, token=token, create_pr=create_pr, overwrite=overwrite,
        message=commit_message,
    )  # fmt: skip

    def make(place: Path) -> StagedRun:
        return stage_run(Path(run), place, to.repo)

    return to.push(make) if folder is None else to.write(make, Path(folder))
