"""One run of the small evaluation, for all tests in this folder."""

from __future__ import annotations

from typing import Any

import pytest

import mergelab as ml
from tests.evaluation.small import SMALL


@pytest.fixture(scope="session")
def run(pipeline: Any, tmp_path_factory: pytest.TempPathFactory) -> ml.evaluation.Result:
    """One small run that many tests look at."""
    return ml.evaluate(SMALL, tmp_path_factory.mktemp("run"), pipeline=pipeline)
