from __future__ import annotations

import math

import pytest
import torch
from tokenizers import Tokenizer

from autospec.training import evaluation
from autospec.training.evaluation import Continuation, loop_mask, loop_share


@pytest.mark.parametrize(
    ("text", "marked"),
    [
        ("abcdabcdabcd", "############"),  # a span of four, three times
        ("abcdabcdabc", "..........."),  # not quite three times
        ("xyabcdabcdabcdabz", "..##############."),  # what continues the loop is inside it
        ("abcabcabcabc", "............"),  # a span of three, four times; six characters only twice
        ("abcabcabcabcabcabc", "##################"),  # six characters, three times
        ("aaaaaaaaaaa", "..........."),  # eleven of one: four, but not three times
        ("zaaaaaaaaaaaa", ".############"),  # twelve
        ("abcdeabcdeabcdeq", "###############."),
        ("", ""),
    ],
)
def test_loops_worked_by_hand(text: str, marked: str) -> None:
    assert "".join("#" if inside else "." for inside in loop_mask([ord(letter) for letter in text])) == marked


def test_the_share_is_of_all_tokens_of_all_rows() -> None:
    assert loop_share([[1, 2, 3, 4] * 3, [5, 6, 7, 8]]) == 12 / 16
    assert loop_share([]) == 0.0


def test_a_model_that_knows_nothing_needs_the_log_of_its_vocabulary(tiny_model, tokenizer: Tokenizer) -> None:
    with torch.no_grad():
        tiny_model.lm_head.weight.zero_()
    text = "def compute_total(values):\n    return values\n" * 5
    num_tokens = len(tokenizer.encode(text).ids)
    expected = num_tokens * math.log2(400) / len(text)
    for window in (16, 64):
        assert evaluation.bits_per_byte(tiny_model, tokenizer, [text], window) == pytest.approx(expected, rel=1e-5)


def test_continuations_equal_one_at_a_time_decoding_and_end_at_the_end_of_text(tiny_model) -> None:
    tiny_model.eval()
    prompts = [("a", [5, 6, 7]), ("b", [9] * 20), ("a", [11, 12])]
    written = evaluation.continue_greedily(tiny_model, prompts, 6, batch_size=2)
    assert [(one.category, list(one.prompt_ids)) for one in written] == prompts
    for one in written:
        ids = list(one.prompt_ids)
        for token in one.new_ids:
            assert int(tiny_model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()) == token
            ids.append(token)
    with torch.no_grad():
        tiny_model.lm_head.weight.zero_()  # all logits equal: the first token, which ends the text, is taken
    (ended,) = evaluation.continue_greedily(tiny_model, [("a", [5, 6])], 6)
    assert ended.new_ids == (0,)


def test_agreement_is_counted_on_the_continuation_alone() -> None:
    class Successor(torch.nn.Module):
        """Expects each token to be followed by the next number."""

        device = torch.device("cpu")

        def forward(self, input_ids: torch.Tensor, use_cache: bool):
            return type("Output", (), {"logits": torch.nn.functional.one_hot(input_ids + 1, 20).float()})

    written = [
        Continuation("counting", (1, 2), (3, 4, 5, 9)),  # three of four
        Continuation("other", (7, 3), (4, 4)),  # one of two; the prompt does not count
    ]
    assert evaluation.first_position_agreement(Successor(), written) == {
        "overall": 4 / 6,
        "counting": 3 / 4,
        "other": 1 / 2,
    }


def test_forward_times_come_one_for_each_model(tiny_model) -> None:
    context = torch.arange(1, 9)[None]
    seconds = evaluation.forward_seconds([tiny_model, tiny_model], context, num_repeats=3, num_warmup=1)
    assert len(seconds) == 2
    assert min(seconds) > 0.0
