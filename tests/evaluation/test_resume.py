"""A run that is killed goes on where it was."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import mergelab as ml
from mergelab import cli
from tests.evaluation.small import PROMPTS, SMALL

KILLER = """
import os, random, signal, sys
from pathlib import Path
import lpips, open_clip, torch  # once, for every run
from mergelab import evaluation, miniature

config, out, log, kills = sys.argv[1], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4])
pipeline = miniature.pipeline("sdxl")
pipeline.set_progress_bar_config(disable=True)
miniature.judge(torch.zeros(1, 3, 48, 48))

def kill_at(left):
    def before(event, arguments):
        nonlocal left
        writes = event == "open" and str(arguments[1])[:1] in ("w", "a", "x") or event == "os.rename"
        if not writes or not str(arguments[0]).startswith(f"{out}/"):
            return
        left -= 1
        if not left:
            path, images = Path(arguments[0]).relative_to(out), len(list((out / "images").glob("*.png")))
            os.write(notes, f"{path.parts[0]} {event} {images}\\n".encode())
            os.kill(os.getpid(), signal.SIGKILL)
    notes = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    sys.addaudithook(before)

random.seed(0)
for moment in (3, 4, 5, 8, *(random.randint(2, 11) for _ in range(kills - 4))):
    run = os.fork()
    if not run:
        kill_at(moment)
        evaluation.evaluate(config, out, pipeline=pipeline, progress=False)
        os._exit(0)
    os.waitpid(run, 0)
"""
"""Evaluates again and again, and kills each run just before it opens a file to write, or renames one, for the n-th
time: half-written files stay half-written. All but the first go on where it was."""


CONFIG = SMALL | {"prompts": PROMPTS[:1], "generation": {"steps": 2}}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills forked processes")
def test_kill_and_resume(pipeline: Any, tmp_path: Path) -> None:
    """kill -9 at twenty moments, then a run to the end: what was there is kept, and the scores are the same."""
    file, out, log = tmp_path / "config.yaml", tmp_path / "run", tmp_path / "moments.txt"
    file.write_text(yaml.safe_dump(CONFIG))
    environment = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    killer = [sys.executable, "-c", KILLER, str(file), str(out), str(log), "20"]
    subprocess.run(killer, env=environment, check=True, capture_output=True)
    moments = [line.split() for line in log.read_text().splitlines()]
    assert len(moments) == 20 and len({tuple(moment) for moment in moments}) > 10
    assert {where for where, _, _ in moments} >= {"adapters", "images", "journal.jsonl"}  # while merging and drawing,
    assert sum(images == "12" for _, _, images in moments) >= 5  # while scoring,
    assert {event for _, event, _ in moments} == {"open", "os.rename"}  # before a file and between file and name

    kept = {path.name: path.stat().st_mtime_ns for path in (out / "images").glob("*.png")}
    assert len(kept) == 12 and not (out / "scores.parquet").exists()
    assert cli.run(["evaluate", str(file), "-o", str(out)]) == 0
    assert kept == {path.name: path.stat().st_mtime_ns for path in (out / "images").glob("*.png")}
    assert not list(out.rglob("*.tmp"))
    whole = ml.evaluate(CONFIG, tmp_path / "whole", pipeline=pipeline)
    assert (out / "scores.parquet").read_bytes() == (whole.folder / "scores.parquet").read_bytes()
