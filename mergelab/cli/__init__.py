"""The command line: parse, call, print."""

from mergelab.cli.app import app, main, run

__all__ = ["app", "main", "run"]
