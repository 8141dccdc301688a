"""The confirmation: what was chosen, measured once on held-out prompts, and which claims stand.

All claims of a run are judged together (Holm): the overall configuration against the baseline, over all and in every
category, and each category's own configuration against the baseline and against the overall one. What does not stand
falls back, from a category's own configuration to the overall one, and from that to off.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from autospec.claims import Claim, claims
from autospec.comparison import Estimate, LogRatios, bootstrap_interval, paired, speedup, verdict
from autospec.config import SpecConfig
from autospec.records import Prompt
from autospec.tuning.finalists import Chosen
from autospec.tuning.pool import OFF, Pool

_OVERALL = "overall configuration"
_POLICY = "policy"


@dataclass(frozen=True, slots=True)
class CrossCheck:
    """Two configurations of one policy, on the held-out prompts of the category that the first belongs to.

    Args:
        category: Whose prompts.
        config: What this category uses.
        other_category: The category that `other_config` belongs to.
        other_config: What that one uses.
        ratio: How much better `config` is than `other_config` here.
    """

    category: str
    config: SpecConfig
    other_category: str
    other_config: SpecConfig
    ratio: Estimate


@dataclass(frozen=True, slots=True)
class Row:
    """What stands for one situation.

    Args:
        config: What to use.
        ratio: Against the baseline, by the yardstick of the study; exactly 1.0 for off.
        bootstrap: The same by the studentised bootstrap, as a check; None for off.
    """

    config: SpecConfig
    ratio: Estimate
    bootstrap: Estimate | None = None


@dataclass(frozen=True, slots=True)
class Judged:
    """A claim, and the bootstrap at the level of its interval as a check that assumes no normality."""

    claim: Claim
    bootstrap: Estimate

    @property
    def stands(self) -> bool:
        """Whether it is above 1.0; Student's t decides."""
        return verdict(self.claim.estimate) == "faster"

    @property
    def is_disputed(self) -> bool:
        """Whether t and bootstrap disagree about 1.0; a bootstrap of too few prompts to say anything does not."""
        knows_nothing = self.bootstrap.low == 0.0 and math.isinf(self.bootstrap.high)
        return not knows_nothing and verdict(self.bootstrap) != verdict(self.claim.estimate)


@dataclass(frozen=True, slots=True)
class Confirmation:
    """What held-out prompts say.

    Args:
        ratio: Of the policy over all held-out prompts, each under the configuration of its category.
        overall: The one configuration for all, whatever the category.
        categories: What each category uses.
        claims: What was claimed, by name, with adjusted p values.
        cross_checks: Categories for which different configurations were chosen, each on the other's prompts.
        bootstrap: `ratio` by the studentised bootstrap, as a check; None where the policy is off for all.
    """

    ratio: Estimate
    overall: Row
    categories: Mapping[str, Row]
    claims: Mapping[str, Judged]
    cross_checks: tuple[CrossCheck, ...]
    bootstrap: Estimate | None = None

    def config_of(self, category: str) -> SpecConfig:
        """Return what the policy uses for a category."""
        return self.categories[category].config if category in self.categories else self.overall.config

    def disputes(self) -> list[str]:
        """Return a sentence for each claim about which t and bootstrap disagree."""
        return [
            f"{name}: {verdict(one.claim.estimate)} by Student's t ({_interval(one.claim.estimate)}), but "
            f"{verdict(one.bootstrap)} by the bootstrap ({_interval(one.bootstrap)}); t decides, and more held-out "
            "prompts would tell"
            for name, one in self.claims.items()
            if one.is_disputed
        ]


def _interval(estimate: Estimate) -> str:
    return f"{estimate.low:.3f} to {estimate.high:.3f}"


def confirm(chosen: Chosen, pool: Pool, prompts: Sequence[Prompt]) -> Confirmation:
    """Judge what was chosen.

    Args:
        chosen: On tune prompts, without configurations that failed since.
        pool: Measurements on held-out prompts, every configuration on every prompt.
        prompts: Those held-out prompts.
    """
    names = sorted({prompt.category for prompt in prompts})
    by_category = {name: [prompt for prompt in prompts if prompt.category == name] for name in names}
    made = _judged(_claims(chosen, pool, by_category, prompts)) if chosen.configs and prompts else {}
    num_measured = len(prompts) if chosen.configs else 0
    overall = _row((chosen.overall, _OVERALL), made, num_measured)
    if len(by_category) > 1:
        sizes = {name: len(own) if num_measured else 0 for name, own in by_category.items()}
        categories = {name: _category_row(name, chosen, made, size) for name, size in sizes.items()}
    else:
        categories = dict.fromkeys(by_category, overall)
    used = {name: row.config for name, row in categories.items()}
    of_policy, check = _policy_ratio(used, chosen, pool, by_category, made)
    return Confirmation(
        ratio=of_policy,
        overall=overall,
        categories=categories,
        claims=made,
        cross_checks=_cross_checks(chosen, pool, by_category) if made else (),
        bootstrap=check,
    )


def _judged(claimed: Mapping[str, LogRatios]) -> dict[str, Judged]:
    return {
        name: Judged(claim, bootstrap_interval(claimed[name], claim.interval_confidence))
        for name, claim in claims(claimed).items()
    }


def _claims(
    chosen: Chosen, pool: Pool, by_category: Mapping[str, list[Prompt]], prompts: Sequence[Prompt]
) -> dict[str, LogRatios]:
    """Return what is claimed: name to log ratios whose mean is said to lie above 0."""
    made: dict[str, LogRatios] = {}
    overall = chosen.overall
    if not overall.is_off:
        made[_OVERALL] = pool.ratios(overall, prompts)
    if len(by_category) == 1:
        return made
    if chosen.by_category:
        made[_POLICY] = _policy_ratios({name: chosen.of_category(name) for name in by_category}, pool, by_category)
    for name, own_prompts in by_category.items():
        if not overall.is_off:
            made[_overall_in(name)] = pool.ratios(overall, own_prompts)
        if name in chosen.by_category:
            own = chosen.by_category[name]
            made[_own_in(name)] = pool.ratios(own, own_prompts)
            if not overall.is_off:
                made[_own_beats(name)] = _difference(pool, own, overall, own_prompts)
    return made


def _category_row(name: str, chosen: Chosen, made: Mapping[str, Judged], num_prompts: int) -> Row:
    """Return what stands in a category: its own configuration, else the overall one, else off."""
    if name in chosen.by_category and (_own_beats(name) not in made or _stands(_own_beats(name), made)):
        own = _row((chosen.by_category[name], _own_in(name)), made, num_prompts)
        if not own.config.is_off:
            return own
    return _row((chosen.overall, _overall_in(name)), made, num_prompts)


def _row(claimed: tuple[SpecConfig, str], made: Mapping[str, Judged], num_prompts: int) -> Row:
    config, name = claimed
    if not _stands(name, made):
        return Row(OFF, _exactly_one(num_prompts))
    return Row(config, made[name].claim.estimate, made[name].bootstrap)


def _stands(name: str, made: Mapping[str, Judged]) -> bool:
    return name in made and made[name].stands


def _policy_ratio(
    used: Mapping[str, SpecConfig],
    chosen: Chosen,
    pool: Pool,
    by_category: Mapping[str, list[Prompt]],
    made: Mapping[str, Judged],
) -> tuple[Estimate, Estimate | None]:
    """Return the ratio of the policy by t and by the bootstrap.

    Where something fell back, of what is left, at the same level.
    """
    num_prompts = sum(len(own) for own in by_category.values()) if chosen.configs else 0
    if all(config.is_off for config in used.values()):
        return _exactly_one(num_prompts), None
    judged = made.get(_POLICY) or made[_OVERALL]
    if all(config == chosen.of_category(name) for name, config in used.items()):
        return judged.claim.estimate, judged.bootstrap
    ratios, level = _policy_ratios(used, pool, by_category), judged.claim.interval_confidence
    return speedup(ratios, level), bootstrap_interval(ratios, level)


def _policy_ratios(
    used: Mapping[str, SpecConfig], pool: Pool, by_category: Mapping[str, list[Prompt]]
) -> dict[str, list[float]]:
    ratios: dict[str, list[float]] = {}
    for name, prompts in by_category.items():
        ratios.update(pool.ratios(used[name], prompts))
    return ratios


def _difference(
    pool: Pool, first: SpecConfig, second: SpecConfig, prompts: Sequence[Prompt]
) -> dict[str, list[float]]:
    ours, theirs = pool.means(first, prompts), pool.means(second, prompts)
    return {prompt_id: [mean - theirs[prompt_id]] for prompt_id, mean in ours.items()}


def _cross_checks(chosen: Chosen, pool: Pool, by_category: Mapping[str, list[Prompt]]) -> tuple[CrossCheck, ...]:
    """Compare, on the prompts of every category, what it was to use with what every other category was to use."""
    checks = []
    for name, prompts in by_category.items():
        own = chosen.of_category(name)
        for other_name in by_category:
            other = chosen.of_category(other_name)
            if own != other:
                ratio = paired(pool.ratios(own, prompts), pool.ratios(other, prompts))
                checks.append(CrossCheck(name, own, other_name, other, ratio))
    return tuple(checks)


def _exactly_one(num_prompts: int) -> Estimate:
    """Return the ratio of off against itself, which needs no measurement."""
    return Estimate(1.0, 1.0, 1.0, num_prompts)


def _overall_in(category: str) -> str:
    return f"overall configuration in {category}"


def _own_in(category: str) -> str:
    return f"own configuration of {category}"


def _own_beats(category: str) -> str:
    return f"own configuration of {category} against the overall one"
