"""Record once, replay exactly: traces of what drafters would draft, and what any configuration makes of them."""

from autospec.replay.recorder import RecordedPrompt, Recorder, RecordingBudget
from autospec.replay.simulator import Replay, Simulator
from autospec.replay.trace import Trace, TracePrompt

__all__ = ["RecordedPrompt", "Recorder", "RecordingBudget", "Replay", "Simulator", "Trace", "TracePrompt"]
