"""Where runs lie: the local store, the server that shows it, and how a client of either is opened."""

from __future__ import annotations

import logging
import os
import sqlite3
import sys
import warnings
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from autospec.errors import TrackingError

if TYPE_CHECKING:
    from mlflow import MlflowClient

_SQLITE = "sqlite:///"
_ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "4",
}


@dataclass(frozen=True, slots=True)
class LocalStore:
    """The store under an outputs root: a database and a folder of artifacts, both by absolute path."""

    root: Path

    @property
    def folder(self) -> Path:
        """Where everything lies."""
        return self.root.absolute() / "mlflow"

    @property
    def uri(self) -> str:
        """The database."""
        return f"sqlite:///{(self.folder / 'mlflow.db').as_posix()}"

    @property
    def artifacts(self) -> str:
        """The folder of artifacts."""
        return (self.folder / "artifacts").as_uri()

    def create(self) -> None:
        """Make the folder; a `TrackingError` where it cannot be made."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise TrackingError(f"the MLflow store needs a folder that can be made, but: {error}") from error


@dataclass(frozen=True, slots=True)
class ServerCommand:
    """Command line of a server, and what to add to the environment."""

    arguments: tuple[str, ...]
    environment: Mapping[str, str]


def server_command(root: Path, port: int = 5000) -> ServerCommand:
    """Return how to browse the store under an outputs root, on the loopback address only.

    One worker and no job runners save many processes; artifacts are read where they lie, so nothing is written to the
    working directory.

    Raises:
        TrackingError: The store's folder cannot be made.
    """
    store = LocalStore(root)
    store.create()
    arguments = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    arguments += ["--backend-store-uri", store.uri, "--default-artifact-root", store.artifacts, "--no-serve-artifacts"]
    environment = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    return ServerCommand(tuple(arguments), environment)


def database_of(uri: str) -> Path | None:
    """Return the file of an SQLite store, or None for another store."""
    return Path(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else None


def check_database(path: Path) -> None:
    """Refuse what is no database, or could not become one.

    Asked of SQLite itself, because MLflow tries a broken file again and again for a minute.
    """
    rule = "the MLflow store (or use tracking=none) needs"
    existing = next(parent for parent in path.absolute().parents if parent.exists())
    if not existing.is_dir():
        raise TrackingError(f"{rule} a folder that can be made, but {existing} is a file")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise TrackingError(f"{rule} a folder that can be written to, but {existing} cannot")
    if not path.exists():
        return
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
            database.execute("PRAGMA schema_version").fetchone()
    except sqlite3.Error as error:
        raise TrackingError(f"{rule} an SQLite database, but {path}: {error}") from error


def open_client(uri: str) -> MlflowClient:
    """Import MLflow, quietly and without telemetry, and return a client; variables the user has set are kept."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of its own dependencies, on import and first use
        from mlflow import MlflowClient

        logging.getLogger("mlflow.store.db.utils").setLevel(logging.WARNING)
        logging.getLogger("alembic").setLevel(logging.WARNING)
        return MlflowClient(tracking_uri=uri)


def failures() -> tuple[type[Exception], ...]:
    """Return what a store or server raises when it does not work, a missing driver of a database included.

    Network errors of requests are `OSError`.
    """
    from mlflow.exceptions import MlflowException

    return (MlflowException, OSError, ImportError)


def first_line(error: Exception) -> str:
    """Return the beginning of what an error says, or its name where it says nothing."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)[:300]
