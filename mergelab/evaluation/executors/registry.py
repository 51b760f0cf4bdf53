"""The table of executors, by the names that `executor` has for them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

from mergelab.errors import OptionError
from mergelab.evaluation.acting import Pool
from mergelab.evaluation.config import Config
from mergelab.evaluation.executors.executor import Executor
from mergelab.evaluation.executors.local import Local
from mergelab.evaluation.executors.on_ray import OnRay
from mergelab.pipelines.opening import Pipeline


def open_executor(
    config: Config, folder: Path, pipeline: Pipeline | None, pool: Pool
) -> AbstractContextManager[Executor]:
    """The one that a configuration names, to be entered.

    Args:
        config: what is run.
        folder: the run folder.
        pipeline: one that is loaded, in place of the configuration's.
        pool: the adapters.

    Raises:
        OptionError: a loaded pipeline cannot be sent to other processes; the package of the executor is not there.
    """
    if config.executor.name == "local":
        return Local(config, folder, pipeline, pool)
    if pipeline is not None:
        raise OptionError(
            "executor: a pipeline that is loaded cannot be sent to workers; name it in the configuration, or use "
            "executor: local"
        )
    return OnRay(config, folder, pool)
