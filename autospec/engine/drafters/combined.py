"""Several drafters as one: the first that has a draft, or the drafts of all in one trie."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from autospec.config import SpecConfig
from autospec.engine.draft_checks import check_kind
from autospec.engine.drafters.base import Drafter, DraftPlan, Needs, Trail, fork
from autospec.engine.tree import TokenTree, Trie, empty_tree
from autospec.errors import DrafterError

# What a part is asked for when drafts are merged: the first of these that it can. A merged trie is cut after its nodes
# were seen, so none of them may be drawn: a chain is then the most probable one.
_MERGED_SHAPES = ("trie", "best_first", "beam", "chain")


class CombinedDrafter:
    """Asks several drafters; each is told every commit, so that it is right whenever it is asked.

    `fallback` passes on the first draft that is not empty, with the rows it was drawn from: cheap retrieval first, a
    model behind it. `merge` inserts all drafts into a trie (SpecInfer, 2305.09781) and keeps `tree_nodes`: the first
    node of each draft weighs 1, the second 1/2, the third 1/3, and where drafts agree weights add up, so that the
    beginnings of all drafts come before the end of any, and equals come in the order of the drafters.

    Args:
        parts: By name, in order.
        combine: `fallback` or `merge`.
    """

    def __init__(self, parts: Mapping[str, Drafter], combine: str) -> None:
        self.parts, self._merges = dict(parts), combine == "merge"
        drafters = list(self.parts.values())
        self.source = "+".join(drafter.source for drafter in drafters)
        self.has_probs = all(drafter.has_probs for drafter in drafters)
        self.shapes = _shapes(drafters, self._merges)
        layers = dict.fromkeys(layer for drafter in drafters for layer in drafter.needs.hidden_layers)
        self._target_slots = [drafter.needs.target_slots for drafter in drafters]
        logits = any(drafter.needs.logits for drafter in drafters)
        self.needs = Needs(tuple(layers), logits, self._num_target_slots)

    def fork(self, num_rows: int) -> list[CombinedDrafter]:
        """Return combinations of forked parts; see `Forks`.

        Raises:
            ConfigError: A part serves one prompt at a time.
        """
        forked = {name: fork(part, name, num_rows) for name, part in self.parts.items()}
        combine = "merge" if self._merges else "fallback"
        return [
            CombinedDrafter({name: rows[row] for name, rows in forked.items()}, combine) for row in range(num_rows)
        ]

    def start(self, prompt_ids: Sequence[int], plan: DraftPlan) -> None:
        self._num_nodes = plan.config.tree_nodes
        for name, part in self.parts.items():
            part.start(prompt_ids, self._merged_plan(name, part, plan) if self._merges else plan)

    def propose(self, max_length: int) -> TokenTree:
        drafts = ((name, self._proposed(name, max_length)) for name in self.parts)
        if not self._merges:
            return next((draft for _, draft in drafts if draft.num_nodes), empty_tree())
        trie = Trie()
        for name, draft in drafts:
            if draft.draft_probs is not None:
                raise DrafterError(
                    f"a draft that is merged must not be drawn, but drafter {name!r} gave `draft_probs`"
                )
            trie.insert_tree(draft, [1 / place for place in range(1, draft.num_nodes + 1)])
        return trie.best(self._num_nodes, max_length)

    def commit(self, token_ids: Sequence[int], trail: Trail | None = None) -> None:
        for part in self.parts.values():
            part.commit(token_ids, None if trail is None else self._trail_for(part.needs, trail))

    def _proposed(self, name: str, max_length: int) -> TokenTree:
        draft = self.parts[name].propose(max_length)
        check_kind(draft, name)  # the rest is checked of what is made of it
        return draft

    def _num_target_slots(self, config: SpecConfig) -> int:
        """Return for how many nodes there must be room: each part leaves the cache as it was."""
        return max(of_part(config) for of_part in self._target_slots)

    def _trail_for(self, needs: Needs, trail: Trail) -> Trail | None:
        """Return what a part asked for, of what all parts asked for."""
        if not needs.anything:
            return None
        hidden = None
        if trail.hidden is not None and needs.hidden_layers:
            by_layer = trail.hidden.unflatten(-1, (len(self.needs.hidden_layers), -1))
            chosen = [self.needs.hidden_layers.index(layer) for layer in needs.hidden_layers]
            hidden = by_layer[:, chosen].flatten(1)
        return Trail(trail.position, trail.logits if needs.logits else None, hidden)

    def _merged_plan(self, name: str, part: Drafter, plan: DraftPlan) -> DraftPlan:
        shape = next(shape for shape in _MERGED_SHAPES if shape in part.shapes)
        sampling = replace(plan.sampling, temperature=0.0) if shape == "chain" else plan.sampling
        return replace(plan, config=replace(plan.config, drafter=name, tree_shape=shape), sampling=sampling)


def _shapes(drafters: Sequence[Drafter], merges: bool) -> tuple[str, ...]:
    if merges:
        fits = all(set(_MERGED_SHAPES) & set(drafter.shapes) for drafter in drafters)
        return ("trie",) if fits else ()
    return tuple(shape for shape in drafters[0].shapes if all(shape in other.shapes for other in drafters))
