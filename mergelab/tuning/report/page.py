"""report.html of a search: one self-contained file, in the style of an evaluation's."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import yaml
from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from mergelab.formats.fetching import public
from mergelab.tuning.report import gallery, tables
from mergelab.tuning.report.figures import fronts, history, name_of, shown_value
from mergelab.tuning.report.words import searched, sentences
from mergelab.tuning.result import Tuned


def render(tuned: Tuned, shown: Sequence[gallery.Shown] = ()) -> str:
    """The page.

    Args:
        tuned: what was found.
        shown: some images of the search, as `gallery.searched` finds them.
    """
    loaders = [PackageLoader("mergelab.tuning.report", "."), PackageLoader("mergelab.evaluation.report", ".")]
    environment = Environment(
        loader=ChoiceLoader(loaders), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    found, config, best = tuned.found, tuned.config, tuned.best_sum
    states, running = Counter(trial.state for trial in found.trials), config.search != "blocks"
    levels = {objective: shown_value(objective, best) if best else math.nan for objective in found.objectives}
    histories = [history(found, objective, level, running=running) for objective, level in levels.items()]
    return environment.get_template("tune.html.j2").render(
        adapters=" and ".join(tuned.winner.weights),
        pipeline=config.pipeline,
        verdict=sentences(tuned),
        searched=searched(config, len(found.trials), states["stopped"], states["failed"]),
        blocks=not running,
        score=config.score,
        weights=tables.weights_table(tuned),
        adapter=tuned.path.name,
        kept=tables.kept_table(tuned),
        contrasts=tables.contrast_rows(tuned),
        sums=tables.sum_rows(tuned),
        parts=[name_of(part) for part in ("score", "joint", "own", "plain")],
        histories=list(filter(None, histories)),
        importance=tables.importance_rows(tuned),
        fronts=fronts(found),
        front=tables.front_rows(tuned),
        grids=[
            (title, gallery.grid(images, tuned.folder))
            for title, images in (("Held out", gallery.held_out(tuned)), ("While searching", shown))
            if images
        ],
        trials=tables.trials_table(tuned),
        evaluation=(tuned.held_out.folder / "report.html").relative_to(tuned.folder).as_posix(),
        config=yaml.safe_dump(public(config.model_dump(exclude_defaults=True)), sort_keys=False, allow_unicode=True),
    )
