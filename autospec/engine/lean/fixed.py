"""The lean forward in fixed shapes: all that depends on the text is read from buffers which stay where they are.

What one call launched can therefore be launched again for another text: by a captured graph, or by compiled code.
Knows buffers, layers and caches; not when it pays, nor who fills it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import pad

from autospec.config import SamplingParams
from autospec.engine.cache import States
from autospec.engine.lean.buffers import FixedInputs
from autospec.engine.lean.fixed_attention import FixedAttention
from autospec.engine.lean.forward import LeanForward
from autospec.engine.sampling import UNIFORM_STEP, pick, to_probs
from autospec.engine.termination import entropies

GREEDY = SamplingParams()


class Inputs(Protocol):
    """What a forward of fixed shape reads."""

    reach: int

    @property
    def token_ids(self) -> Tensor:
        """Of every token: [rows, n]."""
        ...

    @property
    def positions(self) -> Tensor:
        """Of every token: [n], or [rows, n]."""
        ...

    @property
    def wanted(self) -> Tensor | slice:
        """Of which tokens of each row logits are wanted."""
        ...

    def attending(self, keys: States, values: States) -> FixedAttention:
        """Return how the tokens attend."""
        ...


class FixedForward:
    """Runs a lean forward on buffers.

    Args:
        lean: What runs.
        keys: Of the cache.
        values: Of the cache.
        inputs: The buffers.
        wants_hidden: Return hidden states too.
    """

    def __init__(
        self, lean: LeanForward, keys: States, values: States, inputs: Inputs, wants_hidden: bool = False
    ) -> None:
        self.inputs, self._lean, self._wants_hidden = inputs, lean, wants_hidden
        self._keys, self._values = dict(keys), dict(values)
        # Held here, because a longer text elsewhere makes the model another table.
        self._angles = lean.rotary.up_to(inputs.reach)

    def __call__(self) -> tuple[Tensor, ...]:
        """Run what the buffers say.

        Returns:
            Logits [rows, wanted, vocab], and hidden states [layers + 1, rows, n, width] where they are wanted.
        """
        inputs = self.inputs
        attention = inputs.attending(self._keys, self._values)
        rope = _turns(self._angles, inputs.positions)
        logits, hidden = self._lean.through(inputs.token_ids, rope, attention, inputs.wanted, self._wants_hidden)
        return (logits, torch.stack(hidden)) if self._wants_hidden else (logits,)


@dataclass(frozen=True, slots=True)
class ChainForm:
    """What is fixed of a draft.

    Args:
        length: Tokens to draft.
        vocab_size: Of the distributions; only tokens below may be drafted.
        sampling: By which tokens are drawn; greedy takes the most probable ones.
        tells: Whether it is told how they were drawn, for rules that read it.
    """

    length: int
    vocab_size: int
    sampling: SamplingParams = GREEDY
    tells: bool = False


class FixedChain:
    """Drafts tokens one after the other; the host is asked for nothing in between.

    Args:
        lean: What runs.
        keys: Of the cache.
        values: Of the cache.
        inputs: Buffers of the tokens that were not run yet, with one logit row wanted, and a number to draw each by.
        form: Of the draft.
    """

    def __init__(self, lean: LeanForward, keys: States, values: States, inputs: FixedInputs, form: ChainForm) -> None:
        self.inputs, self._lean, self._form = inputs, lean, form
        self._keys, self._values = dict(keys), dict(values)
        self._first = FixedForward(lean, keys, values, inputs)
        self._angles = lean.rotary.up_to(inputs.reach)
        self._columns = torch.arange(inputs.reach, device=inputs.slots.device)
        self._steps = torch.arange(1, form.length, device=inputs.slots.device)

    def __call__(self) -> tuple[Tensor, ...]:
        """Run what the buffers say.

        Returns:
            Tokens [length]; where they are drawn, or it is told how, numbers [length, 5] float64 (each token, its
            probability, the entropy it was drawn at, the two highest probabilities) and what each was drawn from,
            [length, vocab] float32.
        """
        (logits,) = self._first()
        rows = [self._row(logits)]
        tokens = [self._chosen(logits, rows[0], 0)]
        if self._form.length > 1:
            slots = self.inputs.slots[self.inputs.wanted] + self._steps
            cosines, sines = _turns(self._angles, slots)
            masks = {kind: self._masks(slots, window) for kind, window in self._lean.windows.items()}
            for step in range(self._form.length - 1):
                here = slice(step, step + 1)
                own = {kind: mask[:, :, here] for kind, mask in masks.items()}
                attention = FixedAttention(self._keys, self._values, slots[here], own)
                rope = cosines[here], sines[here]
                logits, _ = self._lean.through(tokens[-1], rope, attention, slice(None), wants_hidden=False)
                rows.append(self._row(logits))
                tokens.append(self._chosen(logits, rows[-1], step + 1))
        drafted, shown = torch.cat(tokens, dim=1)[0], [row for row in rows if row is not None]
        if not shown:
            return (drafted,)
        drawn_from = torch.stack(shown)
        return _told(drafted, drawn_from), drawn_from

    def _row(self, logits: Tensor) -> Tensor | None:
        """Return what the next token is drawn from [vocab], or None where nobody asks."""
        form, scores = self._form, logits[0, 0, : self._form.vocab_size].float()
        if form.sampling.is_greedy and not form.tells:
            return None
        probs = scores.softmax(dim=-1) if form.sampling.is_greedy else to_probs(scores, form.sampling)
        return pad(probs, (0, form.vocab_size - len(probs)))

    def _chosen(self, logits: Tensor, row: Tensor | None, place: int) -> Tensor:
        """Return the next token [1, 1]: drawn from its row, or that of the highest of logits [1, 1, vocab]."""
        if row is None or self._form.sampling.is_greedy:
            return logits[..., : self._form.vocab_size].float().argmax(dim=-1)
        number = self.inputs.draws[place : place + 1].double() * UNIFORM_STEP
        return pick(row[None], number)[None]

    def _masks(self, slots: Tensor, window: int | None) -> Tensor:
        """Return [1, 1, tokens, reach]: each token sees all slots up to its own, within the window."""
        seen = self._columns <= slots[:, None]
        if window is not None:
            seen &= self._columns > slots[:, None] - window
        lowest = torch.finfo(self._like.dtype).min
        return torch.zeros(seen.shape, dtype=self._like.dtype, device=seen.device).masked_fill_(~seen, lowest)[
            None, None
        ]

    @property
    def _like(self) -> Tensor:
        return next(iter(self._keys.values()))


def _told(tokens: Tensor, rows: Tensor) -> Tensor:
    """Return what stopping rules read of tokens [n] drawn from rows [n, vocab]: [n, 5] float64."""
    best = pad(rows, (0, 1)).topk(2, dim=-1).values
    probs = rows.gather(1, tokens[:, None])
    return torch.cat([tokens[:, None].double(), probs.double(), entropies(rows)[:, None].double(), best.double()], 1)


def _turns(angles: tuple[Tensor, Tensor], positions: Tensor) -> tuple[Tensor, Tensor]:
    """Return cosines and signed sines [..., 1, head_dim] of positions [...]."""
    cosines, sines = angles
    return cosines[positions], sines[positions]
