"""Record once, replay exactly: traces of what drafters would draft, and what any configuration makes of them."""

from autospec.replay.budget import RecordingBudget
from autospec.replay.ending import output_ends
from autospec.replay.expectation import Expectation, expected
from autospec.replay.observations import AcceptanceRows, acceptance_rows, rank_acceptance
from autospec.replay.recorder import RecordedPrompt, Recorder
from autospec.replay.replayed import Replay
from autospec.replay.simulator import Simulator
from autospec.replay.texts import TracePrompt
from autospec.replay.trace import Trace

__all__ = [
    "AcceptanceRows",
    "Expectation",
    "RecordedPrompt",
    "Recorder",
    "RecordingBudget",
    "Replay",
    "Simulator",
    "Trace",
    "TracePrompt",
    "acceptance_rows",
    "expected",
    "output_ends",
    "rank_acceptance",
]
