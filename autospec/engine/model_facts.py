"""What a model of transformers says of itself: its context, where its angles change, what ends a text."""

from __future__ import annotations

from typing import Any


def context_length(config: Any) -> int:
    """Return for how many tokens a text configuration was made."""
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return 1 << 30


def steady_length(config: Any) -> int | None:
    """Return up to which length rotary angles stay as they are; None where they do not depend on the length.

    LongRoPE has two sets of factors, for texts up to its original context and for longer ones: a text that grows
    across that edge, even by a draft, would mix keys of both.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    by_kind = [values for values in rope.values() if isinstance(values, dict)] or [rope]
    lengths = [
        values.get("original_max_position_embeddings") for values in by_kind if values.get("rope_type") == "longrope"
    ]
    return min((int(length) for length in lengths if length), default=None)


def eos_token_ids(model: Any) -> frozenset[int]:
    """Return the tokens that end a text, by its generation settings or its configuration."""
    generation = getattr(model, "generation_config", None)
    eos = getattr(generation, "eos_token_id", None)
    if eos is None:
        eos = model.config.get_text_config().eos_token_id
    return frozenset([eos] if isinstance(eos, int) else eos or [])


def numbers_per_token(config: Any) -> int:
    """Return how many numbers of keys and values a text configuration's layers keep of each token; 0 is unknown."""
    queries = getattr(config, "num_attention_heads", None)
    heads = getattr(config, "num_key_value_heads", None) or queries
    if not isinstance(heads, int) or not isinstance(queries, int) or getattr(config, "multi_query", False):
        return 0  # heads of their own in every layer, or told in another way
    size = getattr(config, "head_dim", None) or config.hidden_size // queries
    return 2 * int(config.num_hidden_layers) * heads * int(size)
