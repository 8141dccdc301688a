from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from autospec.errors import WorkloadError
from autospec.records import Prompt, Workload
from autospec.runners import check_prompts


def decoder(usable_length: int) -> Any:
    """A word is a token; a prompt without words is refused."""

    def render(prompt: Prompt) -> list[int]:
        if not prompt.text:
            raise WorkloadError(f"the template refuses {prompt.prompt_id}")
        return [0] * len(prompt.text.split())

    return SimpleNamespace(target=SimpleNamespace(usable_length=usable_length), render=render)


def workload(*texts: str, max_new_tokens: int = 4) -> Workload:
    """The last text is held out."""
    prompts = tuple(Prompt(f"p{index}", "one", text) for index, text in enumerate(texts))
    return Workload("words", prompts[:-1], prompts[-1:], max_new_tokens=max_new_tokens)


def test_prompts_that_just_fit_are_taken() -> None:
    check_prompts(decoder(7), workload("a b c", "a"))


def test_all_prompts_that_do_not_fit_are_listed_tune_and_held_out() -> None:
    with pytest.raises(WorkloadError) as caught:
        check_prompts(decoder(6), workload("a b c", "a b", "", "a b c d"))
    template, length = str(caught.value).splitlines()
    assert template == "the template refuses p2"
    assert "6 tokens, but with 4 new ones there is room for 2 and 2 prompts are longer" in length
    assert length.endswith("`workload.max_prompt_tokens=2` leaves them out: 'p0' (3), 'p3' (4)")


@pytest.mark.parametrize("usable_length", [4, 3])
def test_where_there_is_no_room_at_all_fewer_new_tokens_help(usable_length: int) -> None:
    with pytest.raises(WorkloadError, match="room for 0 and 2 prompts are longer; lower `max_new_tokens`: 'p0'"):
        check_prompts(decoder(usable_length), workload("a", "b"))
