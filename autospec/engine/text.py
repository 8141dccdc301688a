"""Text of prompts and outputs: tokenizer, chat template, stop strings, the text of a growing output.

Knows no model.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Sequence
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from autospec.engine.location import TOKENIZER_FILES
from autospec.errors import ModelError, WorkloadError
from autospec.records import Prompt

# Other modules take the type from here, so that transformers has one room.
__all__ = ["GrowingText", "PreTrainedTokenizerBase", "TextCodec", "has_tokenizer"]

CONTEXT_PIECES = 4  # decoded again before new tokens, because some tokenizers join words by what stands before


class TextCodec:
    """Text to token ids and back, by one tokenizer.

    Args:
        tokenizer: What it uses.
        source: Id or path it was loaded from, for records; of a loaded tokenizer what itself remembers, which may be
            nothing.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, source: str = "") -> None:
        self.tokenizer = tokenizer
        self.source = source or str(getattr(tokenizer, "name_or_path", None) or "")

    @classmethod
    def load(cls, location: str, revision: str | None = None, trust_remote_code: bool = False) -> TextCodec:
        """Load the tokenizer of a checkpoint.

        Raises:
            ModelError: The checkpoint has none.
        """
        if Path(location).is_dir() and not has_tokenizer(Path(location)):
            # For some kinds of models transformers makes an empty tokenizer where there are no files.
            raise ModelError(f"`{location}` has no tokenizer that can be loaded: it holds no file of one")
        try:
            tokenizer = AutoTokenizer.from_pretrained(location, revision=revision, trust_remote_code=trust_remote_code)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ModelError(f"`{location}` has no tokenizer that can be loaded: {error}") from error
        return cls(tokenizer, location)

    def encode(self, text: str) -> list[int]:
        """Return the ids of a plain prompt, with the special tokens its tokenizer adds.

        Raises:
            WorkloadError: There is no token in it.
        """
        ids = list(self.tokenizer(text, verbose=False)["input_ids"])  # the engine checks lengths itself
        if not ids:
            raise WorkloadError(f"a prompt must hold at least one token, but got {text!r}")
        return ids

    def encode_span(self, text: str) -> list[int]:
        """Return the ids of a text that is no prompt: without special tokens, of any length, perhaps none."""
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def render(self, prompt: Prompt) -> list[int]:
        """Return the ids of a prompt; messages go through the chat template where there is one.

        Raises:
            WorkloadError: The prompt is empty, or the template refuses its messages.
        """
        if not prompt.messages:
            return self.encode(prompt.text)
        if self.tokenizer.chat_template is None:
            return self.encode("\n\n".join(content for _, content in prompt.messages))
        messages = [{"role": role, "content": content} for role, content in prompt.messages]
        try:
            text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        except Exception as error:  # a template is code: it raises what it likes
            raise WorkloadError(
                f"the chat template must take the messages of prompt {prompt.prompt_id!r}, but says: {error}"
            ) from error
        return list(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of ids, special tokens left out."""
        options = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        return str(self.tokenizer.decode(list(token_ids), **options))

    def vocabulary(self) -> dict[str, int]:
        """Return all tokens and their ids."""
        return dict(self.tokenizer.get_vocab())

    def fingerprint(self) -> str:
        """Return sixteen hexadecimal digits over all tokens and their ids: what makes token ids mean the same."""
        pairs = sorted(self.vocabulary().items(), key=lambda pair: (pair[1], pair[0]))
        return hashlib.sha256(json.dumps(pairs).encode()).hexdigest()[:16]


def has_tokenizer(folder: Path) -> bool:
    """Tell whether a local checkpoint holds files of a tokenizer."""
    return any(True for pattern in TOKENIZER_FILES for _ in folder.glob(pattern))


class GrowingText:
    """The text of an output that grows token by token, and whether a stop string has ended it.

    Nothing is decoded before it is asked for. Only the last few tokens are decoded again for each new one, from a
    place where the text was whole; a character made of several tokens appears once it is complete, and what looks
    like a part of one waits for the next token or the end.

    Args:
        codec: None where there is no tokenizer: the text stays empty.
        stop: Strings that end the output.
    """

    def __init__(self, codec: TextCodec | None, stop: Sequence[str] = ()) -> None:
        self._codec, self._stop = codec, tuple(stop)
        self._ids: list[int] = []
        self._whole = deque([0] * CONTEXT_PIECES, CONTEXT_PIECES)  # after how many tokens the text was whole
        self._text = ""
        self._num_shown = 0

    def append(self, token_id: int) -> bool:
        """Take one more token; tell whether a stop string is now complete (the text is then cut before it)."""
        self._ids.append(token_id)
        if not self._stop:
            return False
        checked = len(self._text)
        self._decode(is_final=False)
        reach = max(map(len, self._stop)) - 1
        places = [self._text.find(word, max(0, checked - reach)) for word in self._stop]
        found = [place for place in places if place >= 0]
        if found:
            self._text = self._text[: min(found)]
        return bool(found)

    def show(self, *, is_final: bool) -> str:
        """Return the text not shown yet; what may still become a stop string waits unless this is the end."""
        self._decode(is_final)
        end = len(self._text)
        if not is_final and self._stop:
            tails = range(1, min(end, max(map(len, self._stop))) + 1)
            end -= max((size for size in tails if self._may_become_stop(self._text[-size:])), default=0)
        shown, self._num_shown = self._text[self._num_shown : end], max(end, self._num_shown)
        return shown

    def _may_become_stop(self, tail: str) -> bool:
        return any(word.startswith(tail) for word in self._stop)

    def _decode(self, is_final: bool) -> None:
        num_decoded = self._whole[-1]
        if self._codec is None or num_decoded == len(self._ids):
            return
        context = self._whole[0]
        fresh = self._codec.decode(self._ids[context:])
        if is_final or not fresh.endswith("\ufffd"):
            self._text += fresh[len(self._codec.decode(self._ids[context:num_decoded])) :]
            self._whole.append(len(self._ids))
