"""From a name, path or object to a target, its text and its drafters; what kinds of drafters there are.

A drafter's source is a kind that needs nothing (`ngram`), `kind:path`, or the id or path of a draft model.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from autospec.engine.drafters import Drafter, NgramDrafter, SmallModelDrafter
from autospec.engine.location import locate
from autospec.engine.model import CausalLM, PreTrainedModel, load_model
from autospec.engine.text import PreTrainedTokenizerBase, TextCodec, has_tokenizer
from autospec.errors import ModelError
from autospec.rules import DRAFTER_KINDS, split_source


@dataclass(frozen=True, slots=True)
class LoadContext:
    """What drafters are loaded beside.

    Args:
        target: The loaded target.
        text: Its tokenizer, where there is one.
        device: As the decoder was asked for.
        dtype: As the decoder was asked for.
        trust_remote_code: Run Python code that comes with checkpoints.
        compile: Run draft models through `torch.compile`.
    """

    target: CausalLM
    text: TextCodec | None
    device: str
    dtype: str
    trust_remote_code: bool
    compile: bool


def _ngram(path: str, context: LoadContext) -> Drafter:
    return NgramDrafter()


# One line for each kind of `autospec.rules.DRAFTER_KINDS`: (path behind the colon or "", context) -> drafter.
MAKERS: dict[str, Callable[[str, LoadContext], Drafter]] = {
    "ngram": _ngram,
}


def load_drafter(name: str, source: str | PreTrainedModel | Drafter, context: LoadContext) -> Drafter:
    """Make a drafter.

    Args:
        name: How configurations will call it, for messages.
        source: A kind, `kind:path`, an id, a path, a loaded model, or any object that is a `Drafter`.
        context: What it is loaded beside.

    Raises:
        ModelError: It cannot be found, loaded or used with this target.
    """
    if isinstance(source, str):
        kind, path = split_source(source)
        if kind:
            return MAKERS[kind](path, context)
    if isinstance(source, (str, PreTrainedModel)):
        return _small_model(source, context)
    if isinstance(source, Drafter):
        return source
    raise ModelError(
        f"a drafter must be one of {sorted(DRAFTER_KINDS)}, an id, a path, a model or a `Drafter`, "
        f"but `{name}` is {source!r}"
    )


def _small_model(source: str | PreTrainedModel, context: LoadContext) -> Drafter:
    options = {"device": context.device, "dtype": context.dtype, "trust_remote_code": context.trust_remote_code}
    small = load_model(source, **options)  # type: ignore[arg-type]
    _check_vocabulary(context, small, source)
    if context.compile:
        small.compile()
    return SmallModelDrafter(small, context.target.vocab_size)


def load_text(
    target: str | PreTrainedModel,
    tokenizer: str | PreTrainedTokenizerBase | None,
    revision: str | None,
    trust_remote_code: bool,
) -> TextCodec | None:
    """Load the tokenizer that was named, or the target's own; None where there is none to be found.

    The own tokenizer of a loaded target is looked for in the folder it was loaded from, but never on a hub: nobody
    named one.

    Raises:
        ModelError: A tokenizer, or the folder of a target, was named and holds none that can be loaded.
    """
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        return TextCodec(tokenizer)
    if tokenizer is not None:
        return TextCodec.load(locate(tokenizer), None, trust_remote_code)
    if isinstance(target, str):
        return TextCodec.load(locate(target), revision, trust_remote_code)
    folder = str(target.config.name_or_path or "")
    if folder and Path(folder).is_dir() and has_tokenizer(Path(folder)):
        return TextCodec.load(folder, None, trust_remote_code)
    return None


def _check_vocabulary(context: LoadContext, small: CausalLM, source: str | PreTrainedModel) -> None:
    """Refuse a draft model whose token ids mean something else.

    Raises:
        ModelError: Another tokenizer, or without two tokenizers to compare, another number of tokens.
    """
    target = context.target
    theirs = _vocabulary(source, context.trust_remote_code) if context.text is not None else None
    if context.text is not None and theirs is not None:
        ours = context.text.vocabulary()
        if theirs != ours:
            shared = sum(ours.get(token) == token_id for token, token_id in theirs.items())
            raise ModelError(
                f"a draft model must have the vocabulary of its target, but `{small.name}` shares {shared} of "
                f"{len(ours)} tokens with `{target.name}`"
            )
    elif small.vocab_size != target.vocab_size:
        raise ModelError(
            f"a draft model must have the vocabulary of its target, but `{small.name}` has {small.vocab_size} tokens "
            f"and `{target.name}` {target.vocab_size}"
        )


def _vocabulary(source: str | PreTrainedModel, trust_remote_code: bool) -> dict[str, int] | None:
    """Return the vocabulary that comes with a draft model; None for a loaded one and a folder without a tokenizer."""
    if not isinstance(source, str):
        return None
    location = locate(source)
    if Path(location).is_dir() and not has_tokenizer(Path(location)):
        return None
    return TextCodec.load(location, None, trust_remote_code).vocabulary()
