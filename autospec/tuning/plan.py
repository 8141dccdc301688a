"""What a run is going to do, put together from its task and the time one prompt takes. Measures nothing."""

from __future__ import annotations

from dataclasses import replace

from autospec.policy import portable_source
from autospec.tuning.budget import Budget, plan_budget
from autospec.tuning.events import StudyPlan
from autospec.tuning.task import Task, describe


def make_plan(task: Task, seconds_per_prompt: float, num_logged: int) -> tuple[StudyPlan, Budget]:
    """Return the plan and its budget.

    Args:
        task: What is tuned.
        seconds_per_prompt: One prompt under plain decoding twice.
        num_logged: Measurements that are in the log already.
    """
    target = task.decoder.target
    budget = plan_budget(task.workload, replace(task.settings, minutes=task.minutes), seconds_per_prompt)
    plan = StudyPlan(
        target=portable_source(target.name),
        drafters={name: portable_source(one.source) for name, one in sorted(task.decoder.drafters.items())},
        device=str(target.device),
        dtype=str(target.dtype).removeprefix("torch."),
        fingerprint=task.machine,
        workload=task.workload.name,
        workload_hash=task.workload.content_hash,
        categories=task.workload.categories,
        decoding=describe(task.workload.sampling),
        max_new_tokens=task.workload.max_new_tokens,
        space_size=task.space.under(task.workload.sampling).size(),
        settings=task.settings,
        seconds_per_prompt=seconds_per_prompt,
        num_search_prompts=budget.num_search,
        num_finalist_prompts=budget.num_finalist,
        num_held_out_prompts=budget.num_held_out,
        search_seconds=budget.search_seconds,
        confirm_seconds=budget.confirm_seconds,
        num_logged=num_logged,
        compile=target.compiles,
    )
    return plan, budget
