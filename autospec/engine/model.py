"""A causal language model behind one call: ids, positions, mask, cache -> logits.

Loads anything decoder-only that transformers loads. Knows nothing of drafts, rules or text.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from autospec.engine.cache import KVCache
from autospec.engine.location import locate
from autospec.engine.masks import NewTokens, attention_mask, layer_windows
from autospec.engine.probing import check_usable, first_line
from autospec.errors import ModelError

# Other modules take the type from here, so that transformers has one room.
__all__ = ["CausalLM", "PreTrainedModel", "cache_argument", "load_model", "resolve_device"]


class CausalLM:
    """One loaded model.

    Args:
        model: A decoder-only causal language model.
        name: Id or path it was loaded from, for records.
        revision: Revision it was loaded at, if one was asked for.

    Raises:
        ModelError: It cannot be used as a target or drafter; see `autospec.engine.probing.check_usable`.
    """

    def __init__(self, model: PreTrainedModel, name: str, revision: str | None = None) -> None:
        self.model, self.name, self.revision = model.eval(), name, revision
        config = model.config.get_text_config()
        self.vocab_size = int(config.vocab_size)
        self.context_length = _context_length(config)
        self._steady_length = _steady_length(config)
        self._windows = layer_windows(config, name)
        self.eos_token_ids = _eos_token_ids(model)
        self._keeps_logits = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._cache_name = cache_argument(model)
        check_usable(self)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        device: torch.device = self.model.device
        return device

    @property
    def dtype(self) -> torch.dtype:
        """Number format of the weights."""
        dtype: torch.dtype = self.model.dtype
        return dtype

    @property
    def width(self) -> int:
        """Size of a hidden state."""
        return int(self.model.config.get_text_config().hidden_size)

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return int(self.model.config.get_text_config().num_hidden_layers)

    @torch.inference_mode()
    def embed(self, token_ids: Tensor) -> Tensor:
        """Return the input embeddings of tokens: [..., width]."""
        embedded: Tensor = self.model.get_input_embeddings()(token_ids.to(self.device))
        return embedded

    @torch.inference_mode()
    def head(self, hidden: Tensor) -> Tensor:
        """Return what the language-model head says of last hidden states: [..., vocab]."""
        logits: Tensor = self.model.get_output_embeddings()(hidden)
        return logits

    def compile(self) -> None:
        """Run the model through `torch.compile` with dynamic shapes from now on."""
        self.model.compile(dynamic=True)

    @torch.inference_mode()
    def forward(
        self,
        input_ids: Tensor,
        cache: KVCache,
        *,
        num_logits: int = 0,
        tree_mask: Tensor | None = None,
        depths: Sequence[int] | None = None,
    ) -> Tensor:
        """Run new tokens behind those cached, and append them to the cache.

        Args:
            input_ids: [batch, n] new tokens of every row.
            cache: Advanced by n.
            num_logits: Return logits of the last `num_logits` tokens only; 0 returns all.
            tree_mask: [n, m] bool, m >= n: which of the last m - n cached and of the new tokens each new one sees,
                besides all tokens cached before those; None is causal.
            depths: Position of each new token behind the cached ones; None counts up.

        Returns:
            Logits [batch, num_logits or n, vocab].
        """
        logits: Tensor = self._run(input_ids, cache, tree_mask, depths, self._keeping(num_logits)).logits
        return logits[:, -num_logits:]  # all of them where it is 0

    @torch.inference_mode()
    def forward_with_hidden(
        self,
        input_ids: Tensor,
        cache: KVCache,
        layers: Sequence[int],
        *,
        num_logits: int = 0,
        tree_mask: Tensor | None = None,
        depths: Sequence[int] | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Run new tokens and return logits as `forward` does, and hidden states [batch, n, width * len(layers)].

        Args:
            input_ids: As for `forward`, like the rest.
            cache: Advanced by n.
            layers: Which hidden states, side by side: 0 the embeddings, i the output of layer i - 1, -1 the last,
                normalised one.
            num_logits: See `forward`.
            tree_mask: See `forward`.
            depths: See `forward`.
        """
        options = {**self._keeping(num_logits), "output_hidden_states": True}
        output = self._run(input_ids, cache, tree_mask, depths, options)
        chosen = [output.hidden_states[layer] for layer in layers]
        return output.logits[:, -num_logits:], torch.cat(chosen, dim=-1) if chosen else output.logits[..., :0]

    def _keeping(self, num_logits: int) -> dict[str, Any]:
        """Return what tells the model to compute the last logits only, where it can be told."""
        return {"logits_to_keep": num_logits} if self._keeps_logits else {}

    def _run(
        self,
        input_ids: Tensor,
        cache: KVCache,
        tree_mask: Tensor | None,
        depths: Sequence[int] | None,
        options: dict[str, Any],
    ) -> Any:
        device = self.device
        new = NewTokens(cache.lengths, input_ids.shape[1], tree_mask, depths)
        output = self.model(
            input_ids=input_ids.to(device),
            attention_mask=attention_mask(new, self._windows, self.dtype, device),
            position_ids=new.positions.to(device),
            use_cache=True,
            **{self._cache_name: cache},
            **options,
        )
        cache.advance(new.num_new)
        return output

    @property
    def usable_length(self) -> int:
        """Most tokens it may see: its context, or as many as it turns by the same angles."""
        return min(self.context_length, self._steady_length or self.context_length)

    def check_length(self, num_tokens: int) -> None:
        """Refuse lengths that the model was not made for.

        Raises:
            ModelError: More than `usable_length`.
        """
        if num_tokens > self.context_length:
            raise ModelError(
                f"prompt and new tokens must fit the context of `{self.name}`, {self.context_length} tokens, "
                f"but {num_tokens} were asked for"
            )
        if num_tokens > self.usable_length:
            raise ModelError(
                f"cached keys must stay valid, but `{self.name}` turns all keys anew in texts of more than "
                f"{self.usable_length} tokens, and {num_tokens} were asked for"
            )


def cache_argument(model: PreTrainedModel) -> str:
    """Return under which name a forward takes its KV cache: transformers 5.24 renamed `past_key_values`."""
    return "cache" if "cache" in inspect.signature(model.forward).parameters else "past_key_values"


def load_model(
    source: str | PreTrainedModel,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
) -> CausalLM:
    """Load a model by id or path, or wrap a loaded one.

    Args:
        source: Path-like names are only looked up locally; others may be ids of a hub.
        device: `auto` takes CUDA where there is one.
        dtype: `auto` is float32 on a CPU and the checkpoint's own on CUDA.
        revision: Of a hub id.
        trust_remote_code: Run Python code that comes with the checkpoint.

    Raises:
        ModelError: It cannot be found, reached, loaded or used.
    """
    if isinstance(source, PreTrainedModel):
        return CausalLM(source, name=str(source.config.name_or_path or type(source).__name__))
    where = resolve_device(device)
    location = locate(source)
    number_format = _resolve_dtype(dtype, where)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(location, **options)
        if config.is_encoder_decoder:
            raise ModelError(
                f"a target or drafter must be decoder-only, but `{source}` is a {config.model_type} model"
            )
        model = AutoModelForCausalLM.from_pretrained(location, config=config, dtype=number_format, **options)
        torch.nn.Module.to(model, where)
    except ModelError:
        raise
    except Exception as error:  # damaged files make transformers and safetensors raise what they like
        raise ModelError(f"`{source}` cannot be loaded as a causal language model: {first_line(error)}") from error
    return CausalLM(model, source, revision)


def resolve_device(device: str) -> torch.device:
    """Turn `auto` or a name into a device that exists.

    Raises:
        ModelError: No such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
        torch.empty(1, device=found)
    except (RuntimeError, AssertionError) as error:
        raise ModelError(
            f"`device` must name a device of this machine, but got {device!r}: {first_line(error)}"
        ) from error
    return found


def _resolve_dtype(dtype: str, device: torch.device) -> torch.dtype | str:
    names = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if dtype == "auto":
        return torch.float32 if device.type == "cpu" else "auto"
    if dtype not in names:
        raise ModelError(f"`dtype` must be one of {['auto', *names]}, but got {dtype!r}")
    return names[dtype]


def _context_length(config: Any) -> int:
    for name in ("max_position_embeddings", "n_positions", "max_seq_len"):
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return 1 << 30


def _steady_length(config: Any) -> int | None:
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


def _eos_token_ids(model: PreTrainedModel) -> frozenset[int]:
    generation = getattr(model, "generation_config", None)
    eos = getattr(generation, "eos_token_id", None)
    if eos is None:
        eos = model.config.get_text_config().eos_token_id
    return frozenset([eos] if isinstance(eos, int) else eos or [])
