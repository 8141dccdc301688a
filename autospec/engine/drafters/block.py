"""Block drafting as in DFlash: a few layers fill a block of mask tokens in one pass, looking at the target's features.

The layout is that of the authors' code (z-lab/dflash, dflash/model.py): `config.json` of a Qwen3 with `block_size` and
`dflash_config` (`mask_token_id`, `target_layer_ids`, whose outputs are fused); `fc.weight`, `hidden_norm.weight`,
`layers.{i}.*` with norms of queries and keys, `norm.weight`; embeddings and head are the target's. In every layer the
fused features of the committed positions stand before the block as keys and values. The block is the newest token and
masks; it sees all of itself, and its output at a mask is what stands there. Blocks are always whole, also where fewer
tokens are asked for, so that a draft depends on the text alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from autospec.engine.cache import KVCache
from autospec.engine.drafters.base import DraftPlan, Needs, Question, Trail
from autospec.engine.drafters.checkpoint import HeadCheckpoint, read_checkpoint
from autospec.engine.drafters.layer_parts import LayerParts, beside, beside_rows
from autospec.engine.drafters.slots import text_cache
from autospec.engine.growth import MODEL_SHAPES, Growing, Growth, grow
from autospec.engine.lean.attention import Attending
from autospec.engine.masks import NewTokens
from autospec.engine.model import CausalLM
from autospec.engine.rows import FlatRows, RowTokens
from autospec.engine.tree import TokenTree, empty_tree
from autospec.errors import ModelError

WEIGHT_FILES = ("model.safetensors", "pytorch_model.bin")
DEFAULT_BLOCK = 16
# What later checkpoints of the authors add, and the value at which it changes nothing.
NEUTRAL = {
    "input_embedding_scale": (None, 1, 1.0),
    "output_multiplier": (None, 1, 1.0),
    "final_logit_softcapping": (None, 0, 0.0),
    "is_causal": (None, False),
    "conv_kernel_size": (None, 0),
    "selector_rank": (None, 0),
}


class BlockModel:
    """The draft network.

    Args:
        checkpoint: In the published layout.
        target: Gives embeddings, head and features.

    Raises:
        ModelError: A weight is missing or does not fit, or the configuration asks for something unknown.
    """

    def __init__(self, checkpoint: HeadCheckpoint, target: CausalLM) -> None:
        weights = {name.removeprefix("model."): weight for name, weight in checkpoint.weights.items()}
        checkpoint = HeadCheckpoint(checkpoint.source, checkpoint.config, weights)
        self._target, self._parts = target, LayerParts(checkpoint, target)
        _check_known(checkpoint)
        self.feature_layers = _feature_layers(checkpoint, target)
        self.num_layers = checkpoint.number("num_hidden_layers")
        inner = HeadCheckpoint(checkpoint.source, checkpoint.config | _own(checkpoint), {})
        self.block_size = inner.number("block_size", DEFAULT_BLOCK, least=2)
        self._mask_id = inner.number("mask_token_id", least=0)
        shape = self._parts.shape
        if self._mask_id >= target.vocab_size or shape.width != target.width:
            raise ModelError(
                f"block heads must be as wide as their target and use one of its tokens as the mask, but "
                f"`{checkpoint.source}` is {shape.width} wide with mask {self._mask_id} and `{target.name}` "
                f"{target.width} with {target.vocab_size} tokens"
            )
        self._parts.load("fc.weight", (shape.width, len(self.feature_layers) * target.width))
        for name in ("hidden_norm", "norm"):
            self._parts.load(f"{name}.weight", (shape.width,))
        for layer in range(self.num_layers):
            self._parts.load_layer(f"layers.{layer}")
            self._parts.load(f"layers.{layer}.input_layernorm.weight", (shape.width,))
            for name in ("q_norm", "k_norm"):
                self._parts.load(f"layers.{layer}.self_attn.{name}.weight", (shape.head_dim,))

    @torch.inference_mode()
    def add_context(self, features: Tensor, cache: KVCache) -> None:
        """Append the target's features [n, layers * width] of the next committed positions to the cache."""
        fused = self._parts.norm("hidden_norm", self._parts.linear("fc", features))
        positions = cache.length + torch.arange(len(fused))
        for layer in range(self.num_layers):
            key, value = self._keys_and_values(layer, fused, positions)
            cache.update(key.transpose(1, 2), value.transpose(1, 2), layer)
        cache.advance(len(fused))

    @torch.inference_mode()
    def fill(self, token_id: int, cache: KVCache) -> Tensor:
        """Return what stands behind a token, whose features are not known yet: [block_size - 1, vocab] float32."""
        block = self._block(token_id, cache)
        new = NewTokens(cache.lengths, self.block_size, block.tree_mask)
        states = self._target.embed(torch.tensor(block.token_ids))
        return self._through(states, new.positions[0], beside(cache, new, states))[0]

    @torch.inference_mode()
    def fill_rows(self, token_ids: Sequence[int], caches: Sequence[KVCache]) -> Tensor:
        """Fill the blocks of several rows of a cache at once, each as `fill` does: [rows, block_size - 1, vocab]."""
        blocks = [self._block(token_id, cache) for token_id, cache in zip(token_ids, caches, strict=True)]
        whole = caches[0].whole
        flat = FlatRows(whole.lengths, blocks)
        states = self._target.embed(flat.token_ids)
        return self._through(states, flat.positions, beside_rows(whole, flat, states))

    def _block(self, token_id: int, cache: KVCache) -> RowTokens:
        everything = torch.ones(self.block_size, self.block_size, dtype=torch.bool)
        return RowTokens(cache.place, [token_id] + [self._mask_id] * (self.block_size - 1), everything)

    def _through(self, states: Tensor, positions: Tensor, attending: Attending) -> Tensor:
        """Run blocks that stand at positions [rows * block_size]: [rows, block_size - 1, vocab] float32.

        What they write behind the context is never counted, so the next block, or the next features, write over it.
        """
        parts = self._parts
        for layer in range(self.num_layers):
            name = f"layers.{layer}"
            normed = parts.norm(f"{name}.input_layernorm", states)
            query = parts.norm(f"{name}.self_attn.q_norm", parts.project(f"{name}.self_attn.q_proj", normed))
            key, value = self._keys_and_values(layer, normed, positions)
            mixed = attending.mix(layer, parts.heads, parts.rotate(query, positions), key, value)
            states = parts.feed_forward(name, states + parts.out(name, mixed))
        behind = states.unflatten(0, (-1, self.block_size))[:, 1:]
        return self._target.head(parts.norm("norm", behind)).float()

    def _keys_and_values(self, layer: int, inputs: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        name, parts = f"layers.{layer}.self_attn", self._parts
        key = parts.norm(f"{name}.k_norm", parts.project(f"{name}.k_proj", inputs))
        return parts.rotate(key, positions), parts.project(f"{name}.v_proj", inputs)


def _own(checkpoint: HeadCheckpoint) -> dict[str, Any]:
    """Return what the configuration says of block drafting alone."""
    return dict(checkpoint.config.get("dflash_config") or {})


def _check_known(checkpoint: HeadCheckpoint) -> None:
    config = checkpoint.config | _own(checkpoint)
    faults = {name: config[name] for name, neutral in NEUTRAL.items() if config.get(name) not in neutral}
    if kinds := set(config.get("layer_types") or ()) - {"full_attention"}:
        faults["layer_types"] = sorted(kinds)
    if faults:
        raise ModelError(f"block heads must be plain layers of full attention, but `{checkpoint.source}` has {faults}")


def _feature_layers(checkpoint: HeadCheckpoint, target: CausalLM) -> tuple[int, ...]:
    """Return which hidden states are fused: the outputs of `target_layer_ids`."""
    named = (checkpoint.config | _own(checkpoint)).get("target_layer_ids")
    if not isinstance(named, list) or not named or not all(type(one) is int and one >= 0 for one in named):
        raise ModelError(f"`target_layer_ids` of `{checkpoint.source}` must be a list of layers, but got {named!r}")
    # The output of the last layer is handed out normalised, as in the authors' code.
    if max(named) >= target.num_layers:
        raise ModelError(
            f"`target_layer_ids` must lie in 0 .. {target.num_layers - 1} of the target, but `{checkpoint.source}` "
            f"takes {named}"
        )
    return tuple(layer + 1 for layer in named)


class BlockDrafter:
    """Every depth has one row, whatever the path that leads there (marginals, as DDTree, 2604.12989, makes trees of).

    Args:
        model: The draft network.
        source: Where it comes from.
        cache: Of the network; see `text_cache`.
    """

    has_probs = True
    shapes = MODEL_SHAPES

    def __init__(self, model: BlockModel, source: str, cache: KVCache | None = None) -> None:
        self.model, self.source, self._given = model, source, cache
        self.needs = Needs(hidden_layers=model.feature_layers)

    @classmethod
    def load(cls, source: str, target: CausalLM) -> BlockDrafter:
        """Load heads from a folder or a hub.

        Raises:
            ModelError: They cannot be found or read, or do not fit the target.
        """
        return cls(BlockModel(read_checkpoint(source, WEIGHT_FILES), target), f"block:{source}")

    def start(self, prompt_ids: Sequence[int], plan: DraftPlan) -> None:
        self._plan = plan
        self._text = list(prompt_ids)
        self._cache = text_cache(self._given, plan.capacity + self.model.block_size)
        self._rows: Tensor | None = None  # of the block behind the newest token

    def fork(self, num_rows: int) -> list[BlockDrafter]:
        """Return drafters that share one cache; see `Forks`."""
        cache = KVCache(0, num_rows)
        return [BlockDrafter(self.model, self.source, cache.row(row)) for row in range(num_rows)]

    def propose(self, max_length: int) -> TokenTree:
        how = self.begin(max_length)
        return empty_tree() if how is None else grow(self, how)

    @property
    def shared(self) -> tuple[object, ...]:
        """Network and cache; see `DraftsTogether`."""
        return self.model, self._cache.whole

    def begin(self, max_length: int) -> Growth | None:
        """Return how to grow; see `DraftsTogether`."""
        length = min(max_length, self.model.block_size - 1)
        if length < 1 or self._cache.length == 0:
            return None
        return self._plan.growth(len(self._text), length)

    @classmethod
    def expand_all(cls, questions: Sequence[Question[BlockDrafter]]) -> list[Tensor]:
        """Fill the blocks of all rows at once; see `DraftsTogether`."""
        waiting = [one.drafter for one in questions if one.drafter._rows is None]
        if waiting:
            newest, caches = [one._text[-1] for one in waiting], [one._cache for one in waiting]
            for drafter, rows in zip(waiting, waiting[0].model.fill_rows(newest, caches), strict=True):
                drafter._rows = rows
        return [one.drafter.expand(one.tree, one.nodes) for one in questions]

    def end(self) -> None:
        """Keep the block, it holds until the next commit; see `DraftsTogether`."""

    def expand(self, tree: Growing, nodes: Sequence[int]) -> Tensor:
        """Return the logits behind nodes, those of one depth all the same; see `Expander`."""
        if self._rows is None:
            self._rows = self.model.fill(self._text[-1], self._cache)
        return self._rows[[tree.depth(node) for node in nodes]]

    def commit(self, token_ids: Sequence[int], trail: Trail | None = None) -> None:
        self._text.extend(token_ids)
        if trail is not None and trail.hidden is not None:
            assert trail.position == self._cache.length, (trail.position, self._cache.length)
            self.model.add_context(trail.hidden, self._cache)
            self._rows = None
