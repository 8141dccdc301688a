"""By what a configuration is compared with plain decoding: speed, or how long a reader waits for the next tokens.

A yardstick turns one measurement, or one prediction, into a log ratio by prompt; above 0 the configuration is better.
What claims a difference reads only these, so that everything behind it is the same for each. Knows no study.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

from autospec.comparison import Estimate, speedup
from autospec.records import Measurement


@dataclass(frozen=True, slots=True)
class Yardstick:
    """One of them.

    Args:
        name: In JSON, MLflow and policies.
        title: For people.
        measured: Property of a `Measurement` that holds the log ratio, plain decoding's over the configuration's.
        predicted: Field of a prediction that holds the same for each prompt.
        least_new_tokens: Of a call, so that there is something to compare.
    """

    name: str
    title: str
    measured: str
    predicted: str
    least_new_tokens: int = 1

    def log_ratio(self, measurement: Measurement) -> float:
        """Return how much better than plain decoding a measurement is; 0 is no difference."""
        return float(getattr(measurement, self.measured))

    def estimate(self, measurements: Iterable[Measurement]) -> Estimate | None:
        """Return the ratio over prompts with its 95 % interval; None without measurements."""
        ratios: defaultdict[str, list[float]] = defaultdict(list)
        for one in measurements:
            ratios[one.prompt_id].append(self.log_ratio(one))
        return speedup(ratios) if ratios else None


SPEED = Yardstick("speedup", "speedup", "log_speedup", "log_speedups")
# Of each call the 95th percentile of the gaps between arrivals, tokens of one step arriving together: what vLLM's
# serving benchmark calls ITL. SGLang's shares a gap among the tokens that end it, which would be speed once more.
# The ratio is plain decoding's over the configuration's: above 1 a reader waits less.
LATENCY = Yardstick("p95_latency_ratio", "p95 latency ratio", "log_latency_ratio", "log_latency_ratios", 2)
YARDSTICKS = (SPEED, LATENCY)

# What decides under each `study.objective`; under `pareto`, among those that go on.
DECISIVE = {"tokens_per_second": SPEED, "p95_inter_token_latency": LATENCY, "pareto": SPEED}
