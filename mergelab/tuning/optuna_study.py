"""The study of Optuna's that a search is: where it is kept, how it samples and prunes, what it left unfinished."""

from __future__ import annotations

import logging
import math
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

from mergelab.errors import OptionError, OutputError
from mergelab.evaluation.store import hash_of
from mergelab.formats.fetching import public
from mergelab.publishing.recipe import package_version
from mergelab.tuning.candidate import Scene
from mergelab.tuning.config import TuneConfig
from mergelab.tuning.objectives import direction_of

if TYPE_CHECKING:
    from optuna.study import Study
    from optuna.trial import FrozenTrial

JOURNAL = "optuna.log"
"""Optuna's own file in the run folder."""
STARTUP = 10
"""Trials at random before the sampler and the pruner know enough."""
BETTER = 5
"""Trials that importance rests on, at least; all of them are four times as many."""
OWNER, TRIED = "run", "tried"
"""Attributes of a trial of Optuna's: the run folder, and what became of it; a kill ends one without."""
# Keys of the configuration that decide no value of a trial; what of the prompts is drawn, the scenes say.
_NO_DECISION = {"trials", "storage", "device", "memory", "prune", "prompts", "seeds", "held_out", "seed"}


def optuna_module() -> Any:
    """Optuna.

    Raises:
        OptionError: it cannot be imported; the sentence has the command that installs it.
    """
    try:
        return import_module("optuna")
    except ImportError as error:
        raise OptionError(f"search: optuna cannot be imported ({error}): pip install 'mergelab[tune]'") from None


@contextmanager
def kept(config: TuneConfig, folder: Path) -> Iterator[None]:
    """Around whatever asks Optuna: no line for each trial, no warning about what is new in it.

    Raises:
        OutputError: the disk is full, or the database is gone; what was told it before is kept.
    """
    optuna = optuna_module()  # which sets the level when it is first imported
    logger = logging.getLogger("optuna")
    level = logger.level
    logger.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (OSError, optuna.exceptions.StorageInternalError) as error:
        why = error.strerror if isinstance(error, OSError) and error.strerror else _first_line(error)
        raise OutputError(
            f"{_place(config, folder)}: trials cannot be kept ({why}); those that ended are, and the same command goes "
            "on from them"
        ) from error
    finally:
        logger.setLevel(level)


def opened(config: TuneConfig, scenes: Sequence[Scene], folder: Path, identity: Mapping[str, Any]) -> Study:
    """The study of a search, with what an earlier run left in it; what a kill interrupted is queued again.

    A study is called by a hash of all that decides the values of its trials: another configuration in the same storage
    is another study.

    Args:
        config: of the search.
        scenes: on which trials are measured.
        folder: the run folder, which this process alone writes to.
        identity: what else decides values: hashes of the adapters and of the base model.

    Raises:
        OptionError: Optuna is not there, or the storage cannot be opened.
    """
    optuna = optuna_module()
    decides = {key: value for key, value in config.model_dump(mode="json").items() if key not in _NO_DECISION}
    drawn = [[scene.prompt, sorted(scene.calls), scene.seed] for scene in scenes]
    request = {"config": decides, "scenes": drawn, "of": identity, "version": package_version()}
    name = f"mergelab {hash_of(request)}"
    directions = [direction_of(objective) for objective in config.objectives]
    single = len(directions) == 1
    with kept(config, folder):
        study = optuna.create_study(
            study_name=name, storage=_storage(config, folder), directions=directions, load_if_exists=True
        )
        trials = study.get_trials(deepcopy=False)
        study.sampler = optuna.samplers.TPESampler(
            n_startup_trials=STARTUP,
            multivariate=True,
            group=True,  # trials of different methods have different parameters
            constant_liar=True,  # several are asked for at a time
            seed=(config.seed + 7919 * len(trials)) % 2**32,  # one that goes on does not begin with the same draws
        )
        # All trials are drawn on the same scenes in the same order, so a value after a wave stands against those of
        # the others after it. The median and nothing sharper: a wave is a few images, and the next may turn the order.
        median = config.prune and single
        study.pruner = optuna.pruners.MedianPruner(STARTUP) if median else optuna.pruners.NopPruner()
        _queue_again(study, trials, config, folder)
    return study


def _queue_again(study: Study, trials: Sequence[FrozenTrial], config: TuneConfig, folder: Path) -> None:
    """What this folder's earlier run was measuring when it was killed."""
    states = optuna_module().trial.TrialState
    for trial in trials:
        alone = config.storage is None or trial.user_attrs.get(OWNER) == owner(folder)
        if trial.state == states.RUNNING and alone:
            study.tell(trial.number, state=states.FAIL)  # without TRIED
            if trial.params:
                study.enqueue_trial(trial.params)


def owner(folder: Path) -> str:
    """By what a trial in a storage of several runs is known as this one's."""
    return str(folder.resolve())


def importance_of(study: Study, objectives: Sequence[str]) -> dict[str, dict[str, float]]:
    """Objective -> parameter -> its share in what makes a trial one of the better ones; empty where few trials tell.

    PED-ANOVA (Watanabe et al., arXiv 2304.10255) of the best tenth, or of the best five where these are more; it needs
    no package beside Optuna.
    """
    optuna = optuna_module()
    complete = study.get_trials(deepcopy=False, states=(optuna.trial.TrialState.COMPLETE,))
    if len(complete) < 4 * BETTER:
        return {}
    kind = optuna.importance.PedAnovaImportanceEvaluator
    quantile = next(name for name in signature(kind).parameters if name in ("target_quantile", "baseline_quantile"))
    evaluator = kind(**{quantile: max(0.1, BETTER / len(complete))})
    found = {}
    for place, objective in enumerate(objectives):
        sign = 1.0 if direction_of(objective) == "minimize" else -1.0  # it looks for low values

        def target(trial: FrozenTrial, place: int = place, sign: float = sign) -> float:
            return sign * trial.values[place]

        shares = optuna.importance.get_param_importances(study, evaluator=evaluator, target=target)
        known = {name: float(share) for name, share in shares.items() if math.isfinite(share)}
        if sum(known.values()) > 0:
            found[objective] = known
    return found


def _place(config: TuneConfig, folder: Path) -> str:
    return str(folder / JOURNAL if config.storage is None else public(config.storage))


def _storage(config: TuneConfig, folder: Path) -> Any:
    optuna = optuna_module()
    if config.storage is None:
        path = folder / JOURNAL
        # The lock is the kernel's: a kill frees it.
        with FileLock(f"{path}.lock"):
            _mend(path)
        journal = optuna.storages.journal
        return journal.JournalStorage(journal.JournalFileBackend(str(path), lock_obj=FileLock(f"{path}.lock")))
    try:
        return optuna.storages.get_storage(config.storage)
    except Exception as error:  # of whatever database
        raise OptionError(
            f"storage: {_place(config, folder)} cannot be opened ({_first_line(error)}); expected an URL such as "
            "sqlite:///trials.db, or none for a file in the run folder"
        ) from error


def _mend(path: Path) -> None:
    """Cut the line that a killed run was writing: Optuna reads no file that goes on after half a line."""
    if not path.exists():
        return
    content = path.read_bytes()
    whole = content.rfind(b"\n") + 1
    if whole < len(content):
        os.truncate(path, whole)


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
