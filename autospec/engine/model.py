"""A causal language model behind one call: ids, positions, mask, cache -> logits.

Loads anything decoder-only that transformers loads. Knows nothing of drafts, rules or text.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from autospec.engine.cache import KVCache
from autospec.engine.cache_pool import CachePool, rounded
from autospec.engine.device import resolve_device, resolve_dtype
from autospec.engine.forwards import Forward, TransformersForward
from autospec.engine.graphs import Graphs
from autospec.engine.launching import Launching, usual_launching
from autospec.engine.lean import LeanForward, compile_lean, read_lean, speed_up
from autospec.engine.lean.fixed import ChainForm
from autospec.engine.location import locate
from autospec.engine.masks import NewTokens, layer_windows
from autospec.engine.memory import check_cache, check_weights
from autospec.engine.model_facts import context_length, eos_token_ids, numbers_per_token, steady_length
from autospec.engine.probing import agrees, check_usable, first_line
from autospec.engine.rows import FlatRows, RowTokens
from autospec.errors import ModelError

# Other modules take the type from here, so that transformers has one room.
__all__ = ["CausalLM", "PreTrainedModel", "load_model", "resolve_device"]


class CausalLM:
    """One loaded model.

    Args:
        model: A decoder-only causal language model.
        name: Id or path it was loaded from, for records.
        revision: Revision it was loaded at, if one was asked for.
        forward: What runs it; by default a lean one where there is one that computes the same, else transformers'.
        is_owned: Nobody else uses the model: weights that a lean forward holds in a form of its own are let go.
            Those of other models are then held twice.
        compiles: Compile what runs it; see `load_model`.

    Attributes:
        compiles: Whether it runs compiled; not everything that is asked to can be, or is worth it.

    Raises:
        ModelError: It cannot be used as a target or drafter; see `autospec.engine.probing.check_usable`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        name: str,
        revision: str | None = None,
        forward: Forward | None = None,
        is_owned: bool = False,
        compiles: bool = False,
    ) -> None:
        self.model, self.name, self.revision, self.compiles = model.eval(), name, revision, False
        config = model.config.get_text_config()
        self.vocab_size = int(config.vocab_size)
        self.context_length = context_length(config)
        self._steady_length = steady_length(config)
        self._windows = layer_windows(config, name)
        self._caches = CachePool()
        self.eos_token_ids = eos_token_ids(model)
        self._forward = TransformersForward(self.model, self._windows) if forward is None else forward
        seen = check_usable(self)
        if forward is None:
            self._become_lean(seen, is_owned, compiles)

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
        return self._forward.head(hidden)

    def weights(self) -> list[Tensor]:
        """Return the tensors it runs with, in the form in which it holds them."""
        return [*self.model.parameters(), *self.model.buffers()] if self._lean is None else self._lean.weights()

    @property
    def is_lean(self) -> bool:
        """Whether it runs by a forward of our own instead of transformers'."""
        return self._lean is not None

    @property
    def _lean(self) -> LeanForward | None:
        if isinstance(self._forward, Graphs):
            return self._forward.lean
        return self._forward if isinstance(self._forward, LeanForward) else None

    def launch_by(self, launching: Launching | None) -> None:
        """Say how a lean forward runs from now on; nothing changes where it runs by transformers' own.

        Args:
            launching: How forwards of fixed shape are launched; None runs every operation anew.
        """
        if self._lean is not None:
            self._forward = self._lean if launching is None else Graphs(self._lean, launching)
            self._caches.clears = launching is not None

    @property
    def is_launched(self) -> bool:
        """Whether its forwards are launched whole where they can be."""
        return isinstance(self._forward, Graphs)

    @property
    def num_launches(self) -> int:
        """How many shapes of its forward can be launched whole; 0 where every operation is run by itself."""
        return self._forward.num_launches if isinstance(self._forward, Graphs) else 0

    def new_cache(self, capacity: int, num_rows: int = 1) -> KVCache:
        """Return an empty cache for so many tokens of each row, in which it runs as fast as it can."""
        if self._caches.holds(capacity, num_rows) or self._fits(num_rows, rounded(capacity)):
            return self._caches.cache(capacity, num_rows)
        return KVCache(capacity, num_rows)

    def _become_lean(self, expected: Tensor, is_owned: bool, compiles: bool) -> None:
        """Run by a lean forward from now on, if there is one for this kind of model that computes what is expected."""
        lean, plain = read_lean(self.model, self._windows), self._forward
        if lean is not None:
            self._forward = lean
            if agrees(self, expected):
                fast = speed_up(self.model, self._windows, is_owned)
                self._forward = compile_lean(fast) if compiles else fast
                self.launch_by(usual_launching(self.device, compiles))
                self.compiles = compiles and self._forward is not fast
                return
            self._forward = plain
        if compiles:
            self.compiles = True
            self.model.compile(dynamic=True)  # after the checks of a new model, whose shapes nobody uses

    def keep(self, model: PreTrainedModel, layers: Sequence[int]) -> CausalLM:
        """Return one of some of its layers, which shares its weights and its slots of a cache.

        Args:
            model: Made of these layers of this one's modules.
            layers: Which.
        """
        forward: Forward = TransformersForward(model, self._windows)
        if isinstance(self._forward, (LeanForward, Graphs)):
            forward = self._forward.keep(layers)
        return CausalLM(model, f"{self.name}[{','.join(map(str, layers))}]", self.revision, forward)

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
        new = NewTokens(cache.lengths, input_ids.shape[1], tree_mask, depths)
        logits, _ = self._forward.run(input_ids, new, cache, num_logits, wants_hidden=False)
        cache.advance(new.num_new)
        return logits

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
        new = NewTokens(cache.lengths, input_ids.shape[1], tree_mask, depths)
        logits, hidden = self._forward.run(input_ids, new, cache, num_logits, wants_hidden=True)
        cache.advance(new.num_new)
        chosen = [hidden[layer] for layer in layers]
        return logits, torch.cat(chosen, dim=-1) if chosen else logits[..., :0]

    @torch.inference_mode()
    def forward_rows(
        self, asked: Sequence[RowTokens], cache: KVCache, layers: Sequence[int] = ()
    ) -> list[tuple[Tensor, Tensor | None]]:
        """Run new tokens of several rows of a cache at once; what comes out for one does not depend on the others.

        Args:
            asked: At most one for each row; other rows are left as they are.
            cache: Each row is advanced by its own number of tokens.
            layers: Which hidden states are wanted; see `forward_with_hidden`.

        Returns:
            In the order asked: logits [wanted tokens, vocab], and hidden states [n, width * len(layers)] or None.
        """
        flat = FlatRows(cache.lengths, asked)
        logits, hidden = self._forward.run_rows(flat, cache, wants_hidden=bool(layers))
        for one in asked:
            cache.lengths[one.row] += len(one.token_ids)
        by_row = flat.split(logits[0])
        if not layers:
            return [(own, None) for own in by_row]
        states = torch.cat([hidden[layer] for layer in layers], dim=-1)[0]
        return list(zip(by_row, flat.split_tokens(states), strict=True))

    @torch.inference_mode()
    def draft_chain(
        self, token_ids: Sequence[int], cache: KVCache, form: ChainForm, draws: Sequence[int] = ()
    ) -> list[Tensor] | None:
        """Draft in one launch tokens behind a text, one after the other.

        Args:
            token_ids: Of the text, behind those cached.
            cache: Of one row; advanced by the text and all drafted tokens but the last, which is not run.
            form: Of the draft.
            draws: A number for each token that is drawn; see `uniform_bits`.

        Returns:
            What `FixedChain` returns; None where this cannot be, and nothing was done.
        """
        if not isinstance(self._forward, Graphs):
            return None
        outputs = self._forward.chain(token_ids, cache, form, draws)
        if outputs is not None:
            cache.advance(len(token_ids) + form.length - 1)
        return outputs

    @property
    def usable_length(self) -> int:
        """Most tokens it may see: its context, or as many as it turns by the same angles."""
        return min(self.context_length, self._steady_length or self.context_length)

    def check_room(self, num_rows: int, capacity: int) -> None:
        """Refuse caches that cannot fit what is free.

        Args:
            num_rows: Prompts at a time.
            capacity: Tokens of each.

        Raises:
            ModelError: They do not; with the arithmetic.
        """
        if self._caches.holds(capacity, num_rows):
            return
        numbers = numbers_per_token(self.model.config.get_text_config())
        try:
            check_cache(num_rows, capacity, numbers * self.dtype.itemsize, self.device)
        except ModelError:
            if not self._caches.give_up():
                raise
            check_cache(num_rows, capacity, numbers * self.dtype.itemsize, self.device)

    def _fits(self, num_rows: int, capacity: int) -> bool:
        try:
            self.check_room(num_rows, capacity)
        except ModelError:
            return False
        return True

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


def load_model(  # noqa: PLR0913  (everything that loading may be told)
    source: str | PreTrainedModel,
    *,
    device: str = "auto",
    dtype: str = "auto",
    revision: str | None = None,
    trust_remote_code: bool = False,
    compile: bool = False,
    keeps_model: bool = False,
) -> CausalLM:
    """Load a model by id or path, or wrap a loaded one.

    Args:
        source: Path-like names are only looked up locally; others may be ids of a hub.
        device: `auto` takes CUDA where there is one.
        dtype: `auto` is float32 on a CPU and the checkpoint's own on CUDA.
        revision: Of a hub id.
        trust_remote_code: Run Python code that comes with the checkpoint.
        compile: Run what runs it through `torch.compile`, which keeps on disk what it compiled: on CUDA a lean forward
            in fixed shapes, each when it first comes (seconds to a minute), on a CPU what lies between the attentions
            of one in float32 with at most 24 MiB of weights, at once (ten seconds to a minute), and transformers'
            forward with dynamic shapes.
        keeps_model: Leave the loaded model whole, because somebody else will use it.

    Raises:
        ModelError: It cannot be found, reached, loaded or used.
    """
    if isinstance(source, PreTrainedModel):
        name = str(source.config.name_or_path or type(source).__name__)
        return CausalLM(source, name, compiles=compile)
    where = resolve_device(device)
    location = locate(source)
    number_format = resolve_dtype(dtype, where)
    options: dict[str, Any] = {"revision": revision, "trust_remote_code": trust_remote_code}
    try:
        config = AutoConfig.from_pretrained(location, **options)
        _check_weights(source, location, config, number_format, where)
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
    return CausalLM(model, source, revision, is_owned=not keeps_model, compiles=compile)


def _check_weights(name: str, location: str, config: Any, wanted: torch.dtype | str, device: torch.device) -> None:
    """Refuse a checkpoint on this machine that cannot fit; what lies on a hub is not known before it is here."""
    stored = getattr(config, "dtype", None) or torch.float32
    own = stored if isinstance(wanted, str) else wanted
    if isinstance(stored, torch.dtype) and isinstance(own, torch.dtype):
        check_weights(name, Path(location), stored, own, device)
