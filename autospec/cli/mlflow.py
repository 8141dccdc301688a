"""`python -m autospec mlflow`: MLflow's server on the store that `tune` writes to, in place of this process."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass

from autospec.cli.build import checked_root
from autospec.cli.compose import Composed
from autospec.cli.faults import Faults
from autospec.cli.schema import typed
from autospec.errors import ConfigError
from autospec.tracking import server_command


@dataclass(frozen=True, slots=True)
class MlflowSettings:
    """Settings of `mlflow`; see `conf/mlflow.yaml`."""

    port: int = 5000
    output_root: str = "outputs"

    def __post_init__(self) -> None:
        if not 1 <= self.port <= 65535:
            raise ConfigError(f"`1 <= port <= 65535` must hold, but got {self.port}")


def run(composed: Composed) -> int:
    """Become the server; returns only by an error."""
    faults = Faults(composed.faults)
    settings = typed(MlflowSettings, composed.values, faults.found)
    assert settings is not None
    root = faults.attempt(lambda: checked_root(settings.output_root))
    faults.attempt(lambda: _check_free(settings.port))
    faults.raise_if_any()
    assert root is not None
    command = server_command(root, settings.port)
    print(f"http://127.0.0.1:{settings.port} shows the experiments; Ctrl-C ends the server", flush=True)
    os.execve(command.arguments[0], list(command.arguments), {**os.environ, **command.environment})


def _check_free(port: int) -> None:
    """Refuse a port on which the server could not listen: it says so late and with exit code 0."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that was just let go of is free
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            raise ConfigError(
                f"`port` must be one that is free on 127.0.0.1, but {port} is not ({error.strerror}); choose another, "
                f"such as port={port + 1 if port < 65535 else port - 1}"
            ) from error
