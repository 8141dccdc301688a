"""From a name, path or object to a target, its text and its drafters; what kinds of drafters there are.

A drafter's source is a kind that needs nothing (`ngram`), `kind:path`, or the id or path of a draft model.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from autospec.engine.datastore import Datastore
from autospec.engine.drafters import (
    BlockDrafter,
    DatastoreDrafter,
    Drafter,
    EagleDrafter,
    EarlyExitDrafter,
    LookaheadDrafter,
    MedusaDrafter,
    MtpDrafter,
    NgramDrafter,
    RecyclingDrafter,
    SmallModelDrafter,
    SuffixDrafter,
    TranslatedModelDrafter,
)
from autospec.engine.drafters.suffix import read_texts
from autospec.engine.location import locate
from autospec.engine.model import CausalLM, PreTrainedModel, load_model
from autospec.engine.own_drafters import drafter_faults, import_drafter
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
        compile: Compile draft models, as their target is.
        allow_import: Modules from which drafters may be imported.
    """

    target: CausalLM
    text: TextCodec | None
    device: str
    dtype: str
    trust_remote_code: bool
    compile: bool
    allow_import: Collection[str] = ()


def _ngram(path: str, context: LoadContext) -> Drafter:
    return NgramDrafter()


def _early_exit(path: str, context: LoadContext) -> Drafter:
    return EarlyExitDrafter.parse(context.target, path)


def _lookahead(path: str, context: LoadContext) -> Drafter:
    return LookaheadDrafter(context.target)


def _medusa(path: str, context: LoadContext) -> Drafter:
    return MedusaDrafter.load(path, context.target)


def _mtp(path: str, context: LoadContext) -> Drafter:
    return MtpDrafter(context.target)


def _eagle(path: str, context: LoadContext) -> Drafter:
    return EagleDrafter.load(path, context.target)


def _suffix(path: str, context: LoadContext) -> Drafter:
    if not path:
        return SuffixDrafter()
    encode = None if context.text is None else context.text.encode_span
    texts = read_texts(Path(path).expanduser(), encode, context.target.vocab_size)
    return SuffixDrafter(texts, source=f"suffix:{path}")


def _recycling(path: str, context: LoadContext) -> Drafter:
    return RecyclingDrafter()


def _datastore(path: str, context: LoadContext) -> Drafter:
    store = Datastore.load(Path(path).expanduser())
    tokenizer = None if context.text is None else context.text.fingerprint()
    if store.header.tokenizer != tokenizer:
        raise ModelError(
            f"a datastore must be of its target's tokenizer, but that of `{path}` is {store.header.tokenizer}, and "
            f"that of `{context.target.name}` {tokenizer or 'not known'}"
        )
    return DatastoreDrafter(store, f"datastore:{path}")


def _block(path: str, context: LoadContext) -> Drafter:
    return BlockDrafter.load(path, context.target)


def _import(path: str, context: LoadContext) -> Drafter:
    return import_drafter(path, context.target, context.text, context.allow_import)


# One line for each kind of `autospec.rules.DRAFTER_KINDS`: (path behind the colon or "", context) -> drafter.
MAKERS: dict[str, Callable[[str, LoadContext], Drafter]] = {
    "block": _block,
    "eagle": _eagle,
    "early_exit": _early_exit,
    "lookahead": _lookahead,
    "medusa": _medusa,
    "mtp": _mtp,
    "ngram": _ngram,
    "suffix": _suffix,
    "recycling": _recycling,
    "datastore": _datastore,
    "import": _import,
}


def load_drafter(name: str, source: str | PreTrainedModel | Drafter, context: LoadContext) -> Drafter:
    """Make a drafter.

    Args:
        name: How configurations will call it, for messages.
        source: A kind, `kind:path`, an id, a path, a loaded model, or any object that is a `Drafter`.
        context: What it is loaded beside.

    Raises:
        ModelError: It cannot be found, loaded or used with this target.
        ConfigError: It is to be imported from a module that is not allowed.
    """
    if isinstance(source, str):
        kind, path = split_source(source)
        if kind:
            return MAKERS[kind](path, context)
    if isinstance(source, (str, PreTrainedModel)):
        return _small_model(source, context)
    if faults := drafter_faults(source):
        raise ModelError(
            f"a drafter must be one of {sorted(DRAFTER_KINDS)}, an id, a path, a model or a `Drafter`, "
            f"but `{name}` is {source!r}: {'; '.join(faults)}"
        )
    return source


def _small_model(source: str | PreTrainedModel, context: LoadContext) -> Drafter:
    small = load_model(
        source,
        device=context.device,
        dtype=context.dtype,
        trust_remote_code=context.trust_remote_code,
        compile=context.compile,
    )
    theirs = _other_text(context, small, source)
    if theirs is not None and context.text is not None:
        return TranslatedModelDrafter(small, theirs, context.target, context.text)
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


def _other_text(context: LoadContext, small: CausalLM, source: str | PreTrainedModel) -> TextCodec | None:
    """Return the tokenizer of a draft model whose token ids mean something else than the target's, or None.

    Raises:
        ModelError: There are no two tokenizers to compare, and another number of tokens.
    """
    target = context.target
    theirs = _own_text(source, context.trust_remote_code)
    if context.text is not None and theirs is not None:
        return None if theirs.vocabulary() == context.text.vocabulary() else theirs
    if small.vocab_size != target.vocab_size:
        raise ModelError(
            f"a draft model without a tokenizer must have the vocabulary of its target, but `{small.name}` has "
            f"{small.vocab_size} tokens and `{target.name}` {target.vocab_size}"
        )
    return None


def _own_text(source: str | PreTrainedModel, trust_remote_code: bool) -> TextCodec | None:
    """Return the tokenizer that comes with a draft model; None for a loaded one and a folder without a tokenizer."""
    if not isinstance(source, str):
        return None
    location = locate(source)
    if Path(location).is_dir() and not has_tokenizer(Path(location)):
        return None
    return TextCodec.load(location, None, trust_remote_code)
