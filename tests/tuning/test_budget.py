from __future__ import annotations

import math
from types import SimpleNamespace

from autospec.tuning.budget import affordable, fresh_prompts, plan_budget
from autospec.tuning.settings import StudySettings


def test_five_minutes_hold_search_and_confirmation(fakes: SimpleNamespace):
    workload = fakes.make_workload(("complete", "docs", "edit"), 24)
    budget = plan_budget(workload, StudySettings(minutes=5.0, finalist_prompts=24), 0.5)
    # final choice: 24 prompts x (3 + 2) configurations x 0.5 s = 60 s; confirmation: 72 x 3 x 0.5 s = 108 s;
    # that is over 45 % of 300 s, so both shrink to 135 / 168 of that
    assert budget.confirm_seconds == 135.0
    assert budget.search_seconds == 165.0
    assert (budget.num_search, budget.num_finalist, budget.num_held_out) == (12, 19, 57)


def test_without_a_limit_everything_is_used(fakes: SimpleNamespace):
    budget = plan_budget(fakes.make_workload(), StudySettings(minutes=0.0, finalist_prompts=10), 0.5)
    assert math.isinf(budget.search_seconds)
    assert (budget.num_finalist, budget.num_held_out) == (10, 24)


def test_a_tiny_budget_keeps_a_minimum_of_confirmation(fakes: SimpleNamespace):
    budget = plan_budget(fakes.make_workload(per_category=12), StudySettings(minutes=0.1), 0.5)
    assert budget.num_held_out == 16
    assert budget.num_finalist == 4
    assert budget.search_seconds == 0.0


def test_few_prompts_are_no_more_than_there_are(fakes: SimpleNamespace):
    budget = plan_budget(fakes.make_workload(("one",), 3), StudySettings(minutes=5.0), 0.5)
    assert (budget.num_search, budget.num_finalist, budget.num_held_out) == (3, 3, 3)


def test_affordable_keeps_to_the_time_but_not_below_the_least():
    assert affordable(100, 8, 0.5, 20.0) == 40
    assert affordable(100, 8, 0.5, 1.0) == 8
    assert affordable(5, 8, 0.5, 1.0) == 5
    assert affordable(100, 8, 0.5, math.inf) == 100


def test_fresh_prompts_begin_behind_the_used_ones_and_go_round(fakes: SimpleNamespace):
    prompts = fakes.make_workload(("one",), 5).tune
    assert fresh_prompts(prompts, 2, 2) == prompts[2:4]
    assert fresh_prompts(prompts, 2, 4) == (*prompts[2:], prompts[0])
    assert fresh_prompts(prompts, 5, 9) == prompts
