"""A finished run, told to each of its trackers."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout, suppress
from typing import Any

from mergelab.errors import OutputError
from mergelab.evaluation.result import Result
from mergelab.evaluation.tracking.record import Record, record_of
from mergelab.evaluation.tracking.tracker import Tracker
from mergelab.formats.fetching.folders import without_secrets
from mergelab.formats.messages import one_line


def tell(trackers: Sequence[Tracker], result: Result, summary: Mapping[str, Any]) -> None:
    """Tells them all; one that fails keeps no other from being told.

    Args:
        trackers: opened.
        result: what was found; everything is written.
        summary: what `summary.json` holds.

    Raises:
        OutputError: a tracker failed; the sentence says which, and that the run is done.
    """
    if not trackers:
        return
    record = record_of(result, summary)
    failed = []
    for tracker in trackers:
        try:
            with redirect_stdout(sys.stderr):  # where trackers say what they do: what is printed is the caller's
                _told(tracker, record)
        except Exception as error:
            failed.append(f"{tracker.extra} was not told: {type(error).__name__}: {without_secrets(one_line(error))}")
    if failed:
        raise OutputError(
            f"{result.folder}: the run is done, and its report is written, but {'; '.join(failed)}. Run it again: "
            "nothing is computed twice"
        )


def _told(tracker: Tracker, record: Record) -> None:
    done = False
    try:
        tracker.start(record.config)
        tracker.log(record.scalars)
        for name, rows in record.tables.items():
            tracker.table(name, rows)
        for name, sheet in record.sheets():
            tracker.image(name, sheet)
        tracker.artifact(record.files)
        done = True
    finally:
        if done:
            tracker.end(failed=False)
        else:
            with suppress(Exception):  # the first error says more
                tracker.end(failed=True)
