from __future__ import annotations

from pathlib import Path

import pytest

from autospec.cli import main
from autospec.cli.datastore import pieces, text_files
from autospec.engine.datastore import Datastore
from autospec.engine.decoder import SpeculativeDecoder
from autospec.engine.text import TextCodec
from autospec.errors import ConfigError, ModelError


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    (folder / "inner").mkdir(parents=True)
    (folder / ".git").mkdir()
    (folder / "b.txt").write_text("abcd efef\nabcd\n")
    (folder / "inner" / "a.py").write_text("xyz\n")
    (folder / "inner" / "empty.py").write_text("")
    (folder / "inner" / "c.bin").write_bytes(b"\xff\xfe\x00")
    (folder / ".hidden").write_text("no")
    (folder / ".git" / "config").write_text("no")
    return folder


def test_files_become_a_datastore_that_a_decoder_loads(
    corpus: Path, tiny_checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "store"
    words = [f"paths=[{corpus}]", f"output={output}", "model=custom", f"model.target={tiny_checkpoint}"]
    assert main(["datastore", *words]) == 0
    shown = capsys.readouterr().out
    codec = TextCodec.load(str(tiny_checkpoint))
    expected = codec.encode_span("abcd efef\nabcd\n"), codec.encode_span("xyz\n")
    assert f"{sum(map(len, expected))} tokens of 3 files" in shown
    assert f"1 files left out, which are no UTF-8 text: {corpus / 'inner' / 'c.bin'}" in shown
    assert f"model.drafters.datastore=datastore:{output}" in shown
    store = Datastore.load(output)
    assert store.header.tokenizer == codec.fingerprint()
    assert store.header.num_texts == 2
    size, hits = store.longest(expected[1][:3])
    assert (size, len(hits)) == (3, 1)
    decoder = SpeculativeDecoder.from_pretrained(str(tiny_checkpoint), {"mine": f"datastore:{output}"})
    assert decoder.drafters["mine"].source == f"datastore:{output}"


def test_the_size_is_bounded(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["datastore", f"paths=[{corpus}]", f"output={tmp_path / 'store'}", "max_tokens=4"]) == 0
    assert "full: what came behind 4 tokens was left out" in capsys.readouterr().out
    assert Datastore.load(tmp_path / "store").header.num_tokens == 4


def test_a_datastore_of_another_tokenizer_is_refused(corpus: Path, tiny_checkpoint: Path, tmp_path: Path) -> None:
    assert main(["datastore", f"paths=[{corpus}]", f"output={tmp_path / 'store'}"]) == 0  # the embedded family's
    with pytest.raises(ModelError, match=r"must be of its target's tokenizer, but that of `.*store` is \w{16}, and"):
        SpeculativeDecoder.from_pretrained(str(tiny_checkpoint), {"mine": f"datastore:{tmp_path / 'store'}"})


def test_all_faults_are_told_at_once(corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["paths=[/no/where]", f"output={corpus / 'b.txt'}", "max_tokens=0", "model.target=/no/model"]
    assert main(["datastore", *words]) == 2
    message = capsys.readouterr().err
    assert "4 faults" in message
    assert "`max_tokens <= 500000000` must hold" in message.replace("1 <= ", "")
    assert "`paths`: a path must be a file or folder, but `/no/where` is not there" in message
    assert "`output` must be a folder or possible to make" in message
    assert main(["datastore"]) == 2
    message = capsys.readouterr().err
    assert "`paths` must hold at least one file, but got []" in message
    assert "`output` must be given" in message
    (tmp_path / "empty").mkdir()
    assert main(["datastore", f"paths=[{tmp_path / 'empty'}]", f"output={tmp_path / 'store'}"]) == 2
    assert "must hold at least one file" in capsys.readouterr().err


def test_folders_are_walked_in_order_without_hidden_files(corpus: Path) -> None:
    found = [str(path.relative_to(corpus)) for path in text_files(str(corpus))]
    assert found == ["b.txt", "inner/a.py", "inner/c.bin", "inner/empty.py"]
    assert text_files(str(corpus / ".hidden")) == [corpus / ".hidden"]
    with pytest.raises(ConfigError, match="is not there"):
        text_files(str(corpus / "missing"))


def test_long_texts_are_cut_between_lines() -> None:
    text = "ab\ncd\n" + "e" * 9 + "\nf"
    assert list(pieces(text, 6)) == ["ab\ncd\n", "e" * 9 + "\n", "f"]
    assert list(pieces(text, 100)) == [text]
    assert list(pieces("", 6)) == []
