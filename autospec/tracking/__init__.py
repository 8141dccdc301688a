"""MLflow behind the tracker protocol of tuning: where runs lie, what a study becomes there, and the tracker itself.

The only room that knows MLflow, which is imported when a study starts to be tracked and not before.
"""

from autospec.tracking.store import LocalStore, ServerCommand, server_command
from autospec.tracking.tracker import MlflowTracker

__all__ = ["LocalStore", "MlflowTracker", "ServerCommand", "server_command"]
