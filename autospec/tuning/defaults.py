"""What engines use where nobody tunes: the first things a study tries, and what its result is worth comparing with."""

from __future__ import annotations

from collections.abc import Mapping

from autospec.config import SpecConfig


def engine_defaults(drafters: Mapping[str, bool], is_greedy: bool) -> tuple[SpecConfig, ...]:
    """Return what other engines use where nobody tunes.

    Args:
        drafters: Name of a drafter to whether its tokens have probabilities.
        is_greedy: Under sampling, drafts of a model are also tried with rejection sampling, as vLLM verifies them.
    """
    configs = []
    for name, has_probs in drafters.items():
        if has_probs:
            configs.append(SpecConfig(drafter=name, draft_length=4))
            configs.append(SpecConfig(drafter=name, draft_length=5, stop_rule="confidence", stop_threshold=0.4))
            if not is_greedy:
                configs.append(SpecConfig(drafter=name, draft_length=5, accept_rule="rejection"))
        else:
            configs.append(SpecConfig(drafter=name, draft_length=10, ngram_min=1, ngram_max=3))
            configs.append(SpecConfig(drafter=name, draft_length=3, ngram_min=1, ngram_max=3))
    return tuple(configs)
