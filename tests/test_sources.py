from __future__ import annotations

import pytest

from autospec import pocket
from autospec.errors import ConfigError
from autospec.rules import DRAFTER_KINDS, DrafterFacts, split_source
from autospec.sources import model_digest, portable_source, resolve_source, tokenizer_digest


def test_the_embedded_models_resolve_to_their_folders():
    assert resolve_source("pocket/target") == str(pocket.target_path())
    assert resolve_source("pocket/draft") == str(pocket.draft_path())


@pytest.mark.parametrize("source", ["Qwen/Qwen3-8B", "ngram", "./models/mine", "/models/mine"])
def test_other_sources_stay_as_they_are(source):
    assert resolve_source(source) == source


def test_an_unknown_embedded_model_is_refused():
    with pytest.raises(ConfigError, match=r"'pocket/target', 'pocket/draft'.*but got 'pocket/drafter'"):
        resolve_source("pocket/drafter")


def test_a_local_folder_that_begins_with_pocket_is_used(tmp_path, monkeypatch):
    (tmp_path / "pocket" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert resolve_source("pocket/mine") == "pocket/mine"


def test_portable_names_find_a_model_from_anywhere(tmp_path, monkeypatch):
    embedded = tmp_path / "embedded"
    embedded.mkdir()
    (tmp_path / "mine").mkdir()
    monkeypatch.setattr(pocket, "target_path", lambda: embedded)
    monkeypatch.chdir(tmp_path)
    assert portable_source(str(embedded)) == "pocket/target"
    assert portable_source("embedded") == "pocket/target"
    assert portable_source("mine") == str(tmp_path.resolve() / "mine")
    assert portable_source("Qwen/Qwen3-8B") == "Qwen/Qwen3-8B"


def test_a_digest_changes_with_weights_of_the_same_size(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"\0" * 1000)
    before = model_digest(str(tmp_path))
    assert before == model_digest(str(tmp_path))
    weights.write_bytes(b"\0" * 999 + b"\1")
    assert model_digest(str(tmp_path)) != before


def test_a_digest_sees_beginning_middle_and_end_of_large_files(tmp_path):
    weights = tmp_path / "model.safetensors"
    size = 9 << 20
    digests = set()
    for changed in (None, 0, size // 2, size - 1):
        content = bytearray(size)
        if changed is not None:
            content[changed] = 1
        weights.write_bytes(content)
        digests.add(model_digest(str(tmp_path)))
    assert len(digests) == 4


def test_data_of_drafters_is_found_from_anywhere_and_has_a_digest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "texts.jsonl").write_text('"a"')
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "datastore.json").write_text("{}")
    assert portable_source("suffix:texts.jsonl") == f"suffix:{tmp_path.resolve() / 'texts.jsonl'}"
    assert portable_source("datastore:store") == f"datastore:{tmp_path.resolve() / 'store'}"
    assert portable_source("suffix") == "suffix"
    before = model_digest("suffix:texts.jsonl"), model_digest("datastore:store")
    assert None not in before
    (tmp_path / "texts.jsonl").write_text('"b"')
    (tmp_path / "store" / "datastore.json").write_text('{"digest": 1}')
    after = model_digest("suffix:texts.jsonl"), model_digest("datastore:store")
    assert before[0] != after[0]
    assert before[1] != after[1]
    assert model_digest("suffix:missing.jsonl") is None


def test_only_local_folders_have_a_digest():
    assert model_digest("Qwen/Qwen3-8B") is None
    assert model_digest("ngram") is None


@pytest.fixture
def head_kind(monkeypatch):
    """A kind of drafter that needs a path."""
    monkeypatch.setitem(DRAFTER_KINDS, "head", DrafterFacts(True, "for this test"))


@pytest.mark.usefixtures("head_kind")
@pytest.mark.parametrize(
    ("source", "parts"),
    [
        ("ngram", ("ngram", "")),
        ("head:mine", ("head", "mine")),
        ("head:C:/models", ("head", "C:/models")),
        ("head", ("", "head")),  # needs a path, so this is the name of a model
        ("some/model", ("", "some/model")),
        ("other:path", ("", "other:path")),
    ],
)
def test_a_source_is_a_kind_a_kind_with_a_path_or_a_model(source, parts):
    assert split_source(source) == parts


@pytest.mark.usefixtures("head_kind")
def test_the_path_behind_a_kind_is_resolved_made_portable_and_digested(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.json").write_text("{}")
    assert resolve_source("head:pocket/draft") == f"head:{pocket.draft_path()}"
    assert resolve_source("head:mine") == "head:mine"
    assert portable_source("head:mine") == f"head:{tmp_path.resolve() / 'mine'}"
    assert portable_source(f"head:{pocket.draft_path()}") == "head:pocket/draft"
    assert portable_source("head:some/model") == "head:some/model"
    assert model_digest("head:mine") == model_digest("mine") is not None
    assert model_digest("head:gone") is None
    with pytest.raises(ConfigError, match="but got 'pocket/drafter'"):
        resolve_source("head:pocket/drafter")


def test_a_digest_of_a_tokenizer_sees_its_files_and_no_others(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    (tmp_path / "vocab.txt").write_text("a")
    before = tokenizer_digest(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"1")
    assert tokenizer_digest(str(tmp_path)) == before
    (tmp_path / "vocab.txt").write_text("b")
    assert tokenizer_digest(str(tmp_path)) != before
    assert tokenizer_digest("some/model") is None
