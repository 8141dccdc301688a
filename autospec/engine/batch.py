"""Several prompts decoded side by side: their drafts are verified in one forward of the target.

Every row has a length, a drafter and a stopping rule of its own, joins when another has left, and gets what it would
get alone. Works on token ids only.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from torch import Tensor

from autospec.engine.drafters.base import Drafter
from autospec.engine.drafting import propose_all
from autospec.engine.model import CausalLM
from autospec.engine.rows import RowTokens
from autospec.engine.session import Job, Session
from autospec.engine.tree import TokenTree, empty_tree


class Batch:
    """The rows that are being decoded.

    Args:
        target: The model whose output is wanted.
        num_rows: Most prompts at a time.
        capacity: Slots of the cache that any of them needs.
        now: Reads the seconds by which phases are told apart.

    Raises:
        ModelError: Caches do not fit the memory.
    """

    def __init__(
        self, target: CausalLM, num_rows: int, capacity: int, now: Callable[[], float] = perf_counter
    ) -> None:
        self._target, self._now = target, now
        target.check_room(num_rows, capacity)
        self._cache = target.new_cache(capacity, num_rows)
        self._rows: list[Session | None] = [None] * num_rows

    @property
    def sessions(self) -> list[Session]:
        """Those that are being decoded."""
        return [session for session in self._rows if session is not None]

    @property
    def free_row(self) -> int | None:
        """The first row that nobody uses."""
        return self._rows.index(None) if None in self._rows else None

    def join(self, row: int, drafter: Drafter | None, job: Job) -> tuple[Session, list[int]]:
        """Begin a prompt in a free row; return its session and its first token.

        Args:
            row: The row.
            drafter: Of this row alone.
            job: What to decode.

        Raises:
            ModelError: It does not fit the context.
        """
        session = Session(self._target, drafter, job, self._now, self._cache.row(row))
        self._rows[row] = session
        return session, session.prefill()

    def leave(self, session: Session) -> None:
        """Free the row of a session; launches look at slots behind the text that comes next."""
        row = session.cache.place
        self._rows[row] = None
        if self._target.is_launched:
            self._cache.wipe(row)

    def step(self) -> list[tuple[Session, list[int]]]:
        """Take one step in every row: draft, verify, accept, commit; return the tokens of each."""
        sessions, started = self.sessions, self._now()
        trees = self._draft(sessions)
        asked = [session.ask(tree, session.limit) for session, tree in zip(sessions, trees, strict=True)]
        drafted = self._now()
        answers = self._verify(sessions, asked)
        verified = self._now()
        _share_out(sessions, drafted - started, verified - drafted)
        settled = []
        for session, tree, (logits, hidden) in zip(sessions, trees, answers, strict=True):
            settled.append((session, session.settle(tree, logits, hidden, self._now())))
        return settled

    def _draft(self, sessions: list[Session]) -> list[TokenTree]:
        """Return a draft for each, empty where none is wanted."""
        asked = [
            (session.drafter, session.limit, session.blaming) for session in sessions if session.drafter is not None
        ]
        drafts = iter(propose_all(asked))
        return [empty_tree() if session.drafter is None else next(drafts) for session in sessions]

    def _verify(self, sessions: list[Session], asked: list[RowTokens]) -> list[tuple[Tensor, Tensor | None]]:
        """Run the target for all of them at once, with the hidden states that any of them needs."""
        layers = tuple(dict.fromkeys(layer for session in sessions for layer in session.hidden_layers))
        answers = self._target.forward_rows(asked, self._cache, layers)
        return [
            (logits, None if hidden is None else _chosen(hidden, layers, session.hidden_layers))
            for session, (logits, hidden) in zip(sessions, answers, strict=True)
        ]


def _share_out(sessions: list[Session], draft_seconds: float, verify_seconds: float) -> None:
    """Give every row its part of a step, so that sums over rows are the batch's time.

    Rows without a drafter draft nothing; where none has one, there is no draft to speak of, as in the plain loop.
    """
    drafting = [session for session in sessions if session.drafter is not None]
    if not drafting:
        draft_seconds, verify_seconds = 0.0, draft_seconds + verify_seconds
    for session in drafting:
        session.stats.draft_seconds += draft_seconds / len(drafting)
    for session in sessions:
        session.stats.verify_seconds += verify_seconds / len(sessions)


def _chosen(hidden: Tensor, layers: tuple[int, ...], wanted: tuple[int, ...]) -> Tensor | None:
    """Return of hidden states [n, width * len(layers)] those of some layers, side by side; None where none is."""
    if wanted == layers or not wanted:
        return hidden if wanted else None
    by_layer: Tensor = hidden.unflatten(-1, (len(layers), -1))
    return by_layer[:, [layers.index(layer) for layer in wanted]].flatten(1)
