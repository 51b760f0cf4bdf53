"""A Ray cluster: the one that is there, or one of this machine that is started for a run."""

from __future__ import annotations

import os
import socket
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mergelab.errors import OptionError, OutputError
from mergelab.evaluation.config import Workers

Ray = Any
"""The package."""
PATIENCE = 3.0
"""Seconds in which a cluster that is there answers."""


def imported(address: str | None = None) -> Ray:
    """The package, for a cluster at an address.

    Raises:
        OptionError: it is not installed.
    """
    try:
        # Ray hides the GPUs from what asks for none, and says at every start that this will change.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
        if ":" in str(address) and _has_token():
            # Clusters ask for the token that `ray start` has left; to "auto" Ray shows it by itself.
            os.environ.setdefault("RAY_AUTH_MODE", "token")
        import ray
    except ImportError as error:
        raise OptionError(
            f"executor: ray: the package is not there ({error}); pip install 'mergelab[ray]' brings it"
        ) from None
    return ray


def _has_token() -> bool:
    """Whether Ray would find one to show to a cluster."""
    given = any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"))
    return given or (Path.home() / ".ray" / "auth_token").exists()


@contextmanager
def connected(ray: Ray, asked: Workers) -> Iterator[Cluster]:
    """The cluster of a run; one that this process is connected to already is taken, and stays so.

    Raises:
        OptionError: there is none at the address.
        OutputError: a cluster cannot be started on this machine.
    """
    if ray.is_initialized():
        yield Cluster(ray, "the one that this program is connected to")
        return
    own = asked.address in (None, "local")
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if own:
        needed = int(-(-(asked.workers or 1) * asked.cpus // 1))
        # Its dashboard takes as long to start as all the rest; a cluster that stays has one.
        options |= {"address": "local", "num_cpus": max(needed, os.cpu_count() or 1), "include_dashboard": False}
    else:
        options["address"] = asked.address
    if not own and ":" in str(asked.address):
        check_port(str(asked.address))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of Ray's own doings
            ray.init(**options)
    except Exception as error:  # whatever its parts raise: no cluster, another version, no room for its files
        said = " ".join(str(error).split())[:300]
        if asked.address == "auto" and isinstance(error, ConnectionError):
            said = "this machine belongs to no cluster; leave the address out, and one is started for the run"
        if own:
            raise OutputError(f"executor: ray: no cluster can be started on this machine: {said}") from None
        if ":" in str(asked.address) and os.environ.get("RAY_AUTH_MODE") != "token":
            said += "; one that asks for a token needs RAY_AUTH_MODE=token and RAY_AUTH_TOKEN"
        raise OptionError(f"executor.address: {asked.address}: Ray cannot connect to it: {said}") from None
    try:
        yield Cluster(ray, asked.address or "this machine")
    finally:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ray.shutdown()


def check_port(address: str) -> None:
    """Raises where nobody answers, which Ray takes a minute and more to find out.

    Raises:
        OptionError: so.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()
    except (OSError, ValueError) as error:
        said = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise OptionError(f"executor.address: {address}: nobody answers there: {said}") from None


class Cluster:
    """A cluster that this process is connected to.

    Attributes:
        name: as a person calls it.
    """

    def __init__(self, ray: Ray, name: str) -> None:
        self.name, self._ray = name, ray
        self._client = bool(ray.util.client.ray.is_connected())
        self._head = None if self._client else str(ray.get_runtime_context().gcs_address)

    def resources(self) -> dict[str, float]:
        """Of all its machines: "CPU", "GPU"."""
        return dict(self._ray.cluster_resources())

    def has_machines(self) -> bool:
        """Whether any of its machines is alive; asked of a cluster that answers."""
        return any(node["Alive"] for node in self._ray.nodes())

    def answers(self) -> bool:
        """Whether it is there still. (Ray itself ends the process after a minute without an answer.)"""
        if self._head is None:
            return bool(self._ray.util.client.ray.is_connected())
        host, _, port = self._head.rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()
        except OSError:
            return False
        return True
