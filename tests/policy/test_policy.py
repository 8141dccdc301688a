from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

from autospec import pocket
from autospec.comparison import Estimate
from autospec.config import SpecConfig
from autospec.errors import AutospecWarning, PolicyError
from autospec.policy import ModelSource, Policy, Quality, Row, load_policy
from autospec.policy.schema import checksum
from autospec.rules import STOP_RULES
from autospec.sources import tokenizer_digest

ASSETS = Path(__file__).parents[1] / "assets" / "policies"


def test_a_saved_policy_loads_as_the_same_policy(policy, tmp_path):
    path = tmp_path / "policy.json"
    policy.save(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_policy(path, strict=True) == policy


def test_saving_again_replaces_the_file_and_leaves_nothing_else(policy, tmp_path):
    path = tmp_path / "policy.json"
    path.write_text("old")
    policy.save(path)
    policy.save(path)
    assert [one.name for one in tmp_path.iterdir()] == ["policy.json"]
    assert load_policy(path) == policy


def test_an_infinite_interval_survives_the_round_trip(policy, evidence, tmp_path):
    unknown = dataclasses.replace(evidence, speedup=Estimate(1.2, 0.0, math.inf, 1), decode_speedup=None)
    policy = dataclasses.replace(policy, rows=(dataclasses.replace(policy.rows[0], evidence=unknown),))
    policy.save(tmp_path / "policy.json")
    assert load_policy(tmp_path / "policy.json").rows[0].evidence == unknown


def test_a_policy_that_cannot_be_written_says_so_and_leaves_nothing(policy, tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(PolicyError, match="must go where files can be written"):
        policy.save(file / "policy.json")
    assert [one.name for one in tmp_path.iterdir()] == ["file"]


def test_a_failed_save_keeps_the_old_file(policy, evidence, tmp_path):
    path = tmp_path / "policy.json"
    policy.save(path)
    before = path.read_bytes()
    broken = dataclasses.replace(evidence, tokens_per_second=math.nan)
    with pytest.raises(PolicyError, match="tokens_per_second` must be finite"):
        dataclasses.replace(policy, rows=(Row(SpecConfig(), evidence=broken),)).save(path)
    assert path.read_bytes() == before


def test_the_most_specific_row_is_chosen(with_rows):
    policy = with_rows(
        (None, None, None, 1),
        (None, None, "edit", 2),
        (4, None, None, 3),
        (4, None, "edit", 4),
        (4, 512, "edit", 5),
    )
    assert policy.choose(batch_size=8).draft_length == 1
    assert policy.choose(batch_size=8, category="edit").draft_length == 2
    assert policy.choose(batch_size=4).draft_length == 3
    assert policy.choose(batch_size=2, category="edit").draft_length == 4
    assert policy.choose(batch_size=2, context_length=513, category="edit").draft_length == 4
    assert policy.choose(batch_size=2, context_length=512, category="edit").draft_length == 5


def test_sizes_are_upper_bounds_and_the_tightest_wins(with_rows):
    policy = with_rows((16, None, None, 2), (1, None, None, 8), (4, None, None, 4), (None, None, None, 0))
    chosen = [policy.choose(batch_size=size).draft_length for size in (1, 2, 4, 5, 16, 17)]
    assert chosen == [8, 4, 4, 2, 2, 0]


def test_a_size_between_two_speculates_only_where_both_do(with_rows):
    # At 1 and at 16 it pays, at 4 it does not: 2 and 3 have an "off" above them, 5 to 15 one below.
    policy = with_rows((1, None, None, 8), (4, None, None, 0), (16, None, None, 2))
    chosen = [policy.choose(batch_size=size).draft_length for size in (1, 2, 3, 4, 5, 15, 16, 17)]
    assert chosen == [8, 0, 0, 0, 0, 0, 2, 0]
    # What is below 4 was not measured at all, so there is no second opinion.
    assert with_rows((4, None, None, 3)).choose(batch_size=2).draft_length == 3


def test_the_size_below_is_the_nearest_that_speaks_about_the_request(with_rows):
    policy = with_rows(
        (1, None, None, 0), (1, None, "edit", 6), (2, 100, None, 4), (2, None, "docs", 5), (8, None, None, 3)
    )
    assert policy.choose(batch_size=4).is_off  # as one at a time; the rows of 2 are for others
    assert policy.choose(batch_size=4, category="edit").draft_length == 3
    assert policy.choose(batch_size=4, category="docs").draft_length == 3
    assert policy.choose(batch_size=4, context_length=100).draft_length == 3
    assert policy.choose(batch_size=4, context_length=101).is_off


def test_a_category_comes_before_sizes_when_both_are_one_condition(with_rows):
    policy = with_rows((1, None, None, 1), (None, None, "edit", 2), (None, 512, None, 3))
    assert policy.choose(batch_size=1, context_length=10, category="edit").draft_length == 2
    assert policy.choose(batch_size=1, context_length=10).draft_length == 1
    assert policy.choose(batch_size=2, context_length=10).draft_length == 3


def test_an_unknown_category_and_none_fall_back_to_the_row_for_all(with_rows):
    policy = with_rows((None, None, None, 3), (None, None, "edit", 8))
    assert policy.choose(category="poems").draft_length == 3
    assert policy.choose(category=None).draft_length == 3


def test_an_unknown_context_length_matches_no_row_with_a_length(with_rows):
    assert with_rows((None, 512, None, 3)).choose().is_off


def test_what_no_row_covers_is_off(with_rows):
    assert with_rows().choose(1, 10, "edit").is_off
    assert with_rows((None, None, "edit", 8)).choose(category="docs").is_off


def test_a_situation_given_twice_and_an_unknown_drafter_are_refused_together(policy):
    config = SpecConfig(drafter="eagle", draft_length=2)
    with pytest.raises(PolicyError) as caught:
        dataclasses.replace(policy, rows=(Row(config), Row(SpecConfig())))
    assert "several rows" in str(caught.value)
    assert "['draft', 'ngram'], but got 'eagle'" in str(caught.value)


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_file_is_called_truncated(policy, write, share):
    text = json.dumps(policy.to_json(), indent=2)
    with pytest.raises(PolicyError, match="truncated"):
        load_policy(write(text[: int(len(text) * share)]))


def test_a_changed_value_is_found(policy, write):
    document = policy.to_json()
    document["rows"][0]["config"]["draft_length"] = 4
    with pytest.raises(PolicyError, match="sha256 does not fit: the file was changed or damaged"):
        load_policy(write(document))


def test_any_changed_digit_is_found(policy, write):
    text = json.dumps(policy.to_json())
    positions = [index for index, character in enumerate(text) if character.isdigit()]
    for position in positions[::7]:
        changed = text[:position] + str((int(text[position]) + 1) % 10) + text[position + 1 :]
        with pytest.raises(PolicyError):
            load_policy(write(changed))


def test_a_removed_checksum_is_found(policy, write):
    document = policy.to_json()
    del document["sha256"]
    with pytest.raises(PolicyError, match="`sha256` is missing"):
        load_policy(write(document))


def test_all_faults_are_listed_at_once(policy, write):
    document = policy.to_json()
    document["dtype"] = 32
    document["target"]["source"] = None
    document["rows"][0]["batch_size"] = "one"
    document["rows"][0]["evidence"]["acceptance_rate"] = 1.5
    document["rows"][0]["evidence"]["speedup"]["low"] = 1.8
    document["rows"][1]["config"]["stop_rule"] = "never"
    document["sampling"]["temperature"] = -1.0
    del document["reproduce"]["seed"]
    with pytest.raises(PolicyError) as caught:
        load_policy(write(document))
    lines = str(caught.value).splitlines()
    assert str(tmp_path_of(lines[0])).endswith("policy.json")
    expected = [
        "`dtype` must be a string, but got 32",
        "`target.source` must be a string, but got None",
        "`rows[0].batch_size` must be an integer, but got 'one'",
        "`rows[0].evidence.acceptance_rate <= 1` must hold, but got 1.5",
        "`rows[0].evidence.speedup`: `low <= value <= high` must hold, but got 1.8, 1.75 and 2.04",
        f"`rows[1].config`: `stop_rule` must be one of {list(STOP_RULES)}, but got 'never'",
        "`sampling`: `0 <= temperature <= 100` must hold, but got -1.0",
        "`reproduce.seed` is missing",
    ]
    assert sorted(lines[1:-1]) == sorted(expected)
    assert "sha256 does not fit" in lines[-1]


def tmp_path_of(line: str) -> Path:
    return Path(line.split(" cannot be used")[0])


def test_unknown_fields_are_refused_with_the_nearest_name(policy, write):
    document = policy.to_json()
    document["rows"][0]["batchsize"] = 1
    document["colour"] = "blue"
    document["sha256"] = checksum(document)
    with pytest.raises(PolicyError) as caught:
        load_policy(write(document))
    assert "`rows[0].batchsize` is not a field of this schema version; did you mean `batch_size`?" in str(caught.value)
    assert "`colour` is not a field of this schema version; known are ['compile', 'costs'," in str(caught.value)


def test_a_newer_schema_version_is_named_before_anything_else(policy, write):
    document = {**policy.to_json(), "schema_version": 6, "colour": "blue"}
    with pytest.raises(PolicyError, match="schema version 6 needs a newer autospec; this one reads up to 5"):
        load_policy(write(document))


@pytest.mark.parametrize("version", [None, "1", -1, True, 1.0])
def test_a_schema_version_must_be_a_count(policy, write, version):
    with pytest.raises(PolicyError, match="`schema_version` must be an integer of at least 0"):
        load_policy(write({**policy.to_json(), "schema_version": version}))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "must be a JSON object"),
        ("", "must be whole JSON"),
        ('{"a": NaN}', "must be finite, but got NaN"),
        ('{"a": 1, "a": 2}', "['a'] repeated"),
        ("[" * 100_000, "nested too deeply"),
    ],
)
def test_what_is_not_a_policy_is_a_policy_error(write, text, message):
    with pytest.raises(PolicyError) as caught:
        load_policy(write(text))
    assert message in str(caught.value)


def test_a_missing_file_and_binary_content_are_policy_errors(tmp_path):
    with pytest.raises(PolicyError, match="readable text file"):
        load_policy(tmp_path / "absent.json")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PolicyError, match="readable text file"):
        load_policy(tmp_path / "binary.json")


@pytest.mark.parametrize("version", [0, 1, 2, 3, 4])
def test_every_older_schema_version_still_loads(version):
    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        policy = load_policy(ASSETS / f"version_{version}.json")
    messages = [str(one.message) for one in given]
    assert len(messages) == (2 if version == 0 else 1)
    assert "`device_name` 'Example CPU'" in messages[-1]
    assert policy.choose(category="edit") == SpecConfig(drafter="ngram", draft_length=8, ngram_max=4)
    assert policy.choose(category="docs") == SpecConfig(
        drafter="draft", draft_length=4, stop_rule="confidence", stop_threshold=0.3
    )
    overall = policy.rows[0].evidence
    assert overall is not None
    assert overall.decode_speedup == (None if version == 0 else Estimate(1.7, 1.55, 1.86, 72))
    assert overall.quality == Quality(144, 0, "identical")
    assert policy.tokenizer is None
    assert overall.speedup == Estimate(1.62, 1.51, 1.74, 72)
    assert (overall.objective, overall.p95_latency_ratio) == ("tokens_per_second", None)
    assert policy.target == ModelSource("pocket/target", None, None)
    assert policy.compile is False


def test_an_older_policy_is_saved_in_the_schema_version_of_today(tmp_path):
    with pytest.warns(AutospecWarning):
        policy = load_policy(ASSETS / "version_1.json")
    policy.save(tmp_path / "policy.json")
    assert json.loads((tmp_path / "policy.json").read_text())["schema_version"] == 5


def test_a_policy_that_pretends_to_be_older_than_checksums_cannot_be_verified_and_says_so(policy, write):
    document = {**policy.to_json(), "schema_version": 0}
    document["rows"][0]["config"]["draft_length"] = 64
    del document["sha256"]
    with pytest.warns(AutospecWarning, match="schema version 0 has no checksum, so that it cannot be verified"):
        assert load_policy(write(document)).choose().draft_length == 64


def test_a_policy_of_version_1_is_held_to_its_checksum(write):
    document = json.loads((ASSETS / "version_1.json").read_text())
    document["rows"][0]["config"]["draft_length"] = 64
    with pytest.raises(PolicyError, match="sha256 does not fit"):
        load_policy(write(document))


def test_faults_of_an_older_policy_are_listed_too(write):
    document = json.loads((ASSETS / "version_0.json").read_text())
    document["rows"][0]["evidence"]["acceptance_rate"] = "high"
    document["drafters"] = ["ngram"]
    with pytest.raises(PolicyError) as caught:
        load_policy(write(document))
    assert "`rows[0].evidence.acceptance_rate` must be a number, but got 'high'" in str(caught.value)
    assert "`drafters` must be an object, but got ['ngram']" in str(caught.value)


def test_another_device_warns_and_strict_refuses(policy, tmp_path):
    path = tmp_path / "policy.json"
    dataclasses.replace(policy, device={**policy.device, "device_name": "Other CPU", "num_cores": 4096}).save(path)
    with pytest.warns(AutospecWarning) as given:
        load_policy(path)
    assert len(given) == 2
    with pytest.raises(PolicyError, match=r"(?s)must be made for this machine.*'Other CPU'.*`num_cores` 4096"):
        load_policy(path, strict=True)


def test_other_model_files_warn_and_strict_refuses(policy, tmp_path):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    path = tmp_path / "policy.json"
    dataclasses.replace(policy, target=ModelSource(str(model), None, "0" * 16)).save(path)
    with pytest.warns(AutospecWarning, match="the target .* holds other files"):
        load_policy(path)
    with pytest.raises(PolicyError, match="holds other files"):
        load_policy(path, strict=True)


def test_loading_and_choosing_import_no_heavy_library(policy, tmp_path):
    policy.save(tmp_path / "policy.json")
    code = (
        "import sys; from autospec.policy import load_policy;"
        "config = load_policy('policy.json', strict=True).choose(1, 10, 'edit');"
        "heavy = {'torch', 'transformers', 'optuna', 'sklearn', 'mlflow', 'hydra', 'matplotlib', 'scipy'};"
        "print(config.drafter, sorted(heavy & set(sys.modules)))"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["ngram", "[]"]


class FakeTarget:
    device = "cpu"
    dtype = "float32"


class FakeDecoder:
    """Stands for the engine's decoder and remembers how it was asked for."""

    target = FakeTarget()

    @classmethod
    def from_pretrained(cls, **arguments):
        decoder = cls()
        decoder.arguments = arguments
        return decoder


@pytest.fixture
def fake_engine(monkeypatch):
    monkeypatch.setattr("autospec.engine.decoder.SpeculativeDecoder", FakeDecoder)


@pytest.mark.usefixtures("fake_engine")
def test_a_decoder_gets_the_target_and_the_drafters_in_use(with_rows):
    import torch

    from autospec.pocket import draft_path, target_path

    policy = with_rows((None, None, None, 3))
    policy = dataclasses.replace(policy, device={**policy.device, "num_threads": torch.get_num_threads()})
    arguments = policy.decoder(device="cpu").arguments
    assert arguments == {
        "target": str(target_path()),
        "drafters": {"draft": str(draft_path())},
        "tokenizer": None,
        "device": "cpu",
        "dtype": "float32",
        "revision": None,
        "trust_remote_code": False,
        "compile": False,
        "allow_import": (),
    }
    named = dataclasses.replace(policy, tokenizer=ModelSource("pocket/target"))
    arguments = named.decoder(device="cpu", trust_remote_code=True).arguments
    assert (arguments["tokenizer"], arguments["trust_remote_code"]) == (str(target_path()), True)


@pytest.mark.usefixtures("fake_engine")
def test_a_decoder_gets_every_drafter_of_a_combination(policy, tmp_path):
    import torch

    combined = Row(SpecConfig("ngram+draft", 4, combine="merge", tree_shape="trie"))
    policy = dataclasses.replace(
        policy, rows=(combined,), device={**policy.device, "num_threads": torch.get_num_threads()}
    )
    policy.save(tmp_path / "policy.json")
    loaded = load_policy(tmp_path / "policy.json")
    assert loaded.choose() == combined.config
    assert sorted(loaded.decoder(device="cpu").arguments["drafters"]) == ["draft", "ngram"]
    with pytest.raises(PolicyError, match=r"rows may use only the drafters \['draft'\], but got 'ngram'"):
        dataclasses.replace(policy, drafters={"draft": policy.drafters["draft"]})


def test_data_of_a_drafter_that_is_not_there_is_told(policy, tmp_path):
    missing = ModelSource(f"datastore:{tmp_path / 'gone'}", digest="0123456789abcdef")
    dataclasses.replace(policy, drafters={**policy.drafters, "files": missing}).save(tmp_path / "policy.json")
    with pytest.warns(AutospecWarning, match=rf"the drafter files `.*` is not there \({tmp_path / 'gone'}\)"):
        load_policy(tmp_path / "policy.json")


@pytest.mark.usefixtures("fake_engine")
@pytest.mark.parametrize("tuned", [True, False])
def test_a_decoder_is_compiled_as_it_was_tuned_unless_said_otherwise(with_rows, tmp_path, tuned):
    import torch

    policy = with_rows((None, None, None, 3))
    device = {**policy.device, "num_threads": torch.get_num_threads()}
    dataclasses.replace(policy, device=device, compile=tuned).save(tmp_path / "policy.json")
    loaded = load_policy(tmp_path / "policy.json")
    asked = [loaded.decoder(device="cpu", compile=one).arguments["compile"] for one in (None, True, False)]
    assert asked == [tuned, True, False]


@pytest.mark.usefixtures("fake_engine")
def test_a_decoder_warns_on_another_kind_of_device_and_other_threads(policy):
    with pytest.warns(AutospecWarning, match="measured on cuda, but the decoder runs on cpu"):
        dataclasses.replace(policy, device={"device_kind": "cuda"}).decoder()
    with pytest.warns(AutospecWarning, match="measured with 4096 threads"):
        dataclasses.replace(policy, device={**policy.device, "num_threads": 4096}).decoder()


def test_policies_are_immutable(policy: Policy):
    with pytest.raises(dataclasses.FrozenInstanceError):
        policy.dtype = "bfloat16"


def test_a_loaded_policy_generates_what_plain_decoding_does(policy, tmp_path):
    import torch

    device = {**policy.device, "num_threads": torch.get_num_threads()}
    dataclasses.replace(policy, device=device).save(tmp_path / "policy.json")
    loaded = load_policy(tmp_path / "policy.json", strict=True)
    decoder = loaded.decoder(device="cpu")
    prompt = "def read_lines(path):\n"
    (plain,) = decoder.generate(prompt, max_new_tokens=12)
    (tuned,) = decoder.generate(prompt, config=loaded, max_new_tokens=12, category="complete")
    assert tuned.token_ids == plain.token_ids
    assert tuned.stats.num_drafted > 0


def test_a_policy_remembers_a_tokenizer_that_is_not_the_targets(policy, tmp_path):
    import torch

    from autospec.engine.decoder import SpeculativeDecoder
    from autospec.policy import Choice, build_policy
    from autospec.records import Prompt, Workload

    bare = tmp_path / "bare"
    shutil.copytree(pocket.draft_path(), bare, ignore=shutil.ignore_patterns("*token*"))
    decoder = SpeculativeDecoder.from_pretrained(bare, {"ngram": "ngram"}, tokenizer=str(pocket.target_path()))
    workload = Workload("w", (Prompt("a", "x", "text"),), (Prompt("b", "x", "other"),))
    choice = Choice(SpecConfig(drafter="ngram", draft_length=2))
    device = {**policy.device, "num_threads": torch.get_num_threads()}
    built = build_policy(decoder, workload, device, choice, {}, policy.reproduce)
    assert built.tokenizer == ModelSource("pocket/target", None, tokenizer_digest(str(pocket.target_path())))
    built.save(tmp_path / "policy.json")
    loaded = load_policy(tmp_path / "policy.json", strict=True)
    assert loaded == built
    (plain,) = decoder.generate("def f", max_new_tokens=4)
    (again,) = loaded.decoder(device="cpu").generate("def f", config=loaded, max_new_tokens=4)
    assert again.text == plain.text


def test_another_tokenizer_at_the_same_place_warns(policy, tmp_path):
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    source = ModelSource(str(folder), None, tokenizer_digest(str(folder)))
    path = tmp_path / "policy.json"
    dataclasses.replace(policy, tokenizer=source).save(path)
    assert load_policy(path, strict=True).tokenizer == source
    (folder / "tokenizer.json").write_text("[]")
    with pytest.warns(AutospecWarning, match=r"the tokenizer .* holds other files"):
        load_policy(path)
    (folder / "tokenizer.json").unlink()
    folder.rmdir()
    with pytest.raises(PolicyError, match=r"the tokenizer .* is not there"):
        load_policy(path, strict=True)


@dataclasses.dataclass
class PathDrafter:
    """Drafts as an n-gram drafter does, but says that it came from a path."""

    path: str
    inner: object

    def __getattr__(self, name):
        return getattr(self.inner, name)

    @property
    def source(self):
        return f"head:{self.path}"


@pytest.fixture
def head_kind(monkeypatch):
    """A kind of drafter that needs a path, registered everywhere a kind is."""
    from autospec.engine import loading
    from autospec.engine.drafters import NgramDrafter
    from autospec.rules import DRAFTER_KINDS, DrafterFacts

    monkeypatch.setitem(DRAFTER_KINDS, "head", DrafterFacts(True, "for this test"))
    monkeypatch.setitem(loading.MAKERS, "head", lambda path, context: PathDrafter(path, NgramDrafter()))


@pytest.mark.usefixtures("head_kind")
def test_a_drafter_of_a_kind_with_a_path_goes_into_a_policy_and_comes_out(policy, tmp_path, monkeypatch):
    import torch

    from autospec.engine.decoder import SpeculativeDecoder
    from autospec.policy import Choice, build_policy
    from autospec.records import Prompt, Workload
    from autospec.sources import model_digest

    monkeypatch.chdir(tmp_path)
    (tmp_path / "heads").mkdir()
    (tmp_path / "heads" / "config.json").write_text("{}")
    decoder = SpeculativeDecoder.from_pretrained(str(pocket.draft_path()), {"head": "head:heads"})
    workload = Workload("w", (Prompt("a", "x", "text"),), (Prompt("b", "x", "other"),))
    device = {**policy.device, "num_threads": torch.get_num_threads()}
    choice = Choice(SpecConfig(drafter="head", draft_length=2))
    built = build_policy(decoder, workload, device, choice, {}, policy.reproduce)
    stored = ModelSource(f"head:{tmp_path.resolve() / 'heads'}", None, model_digest("heads"))
    assert built.drafters == {"head": stored}
    built.save("policy.json")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    loaded = load_policy(tmp_path / "policy.json", strict=True)
    assert loaded == built
    again = loaded.decoder(device="cpu")
    assert again.drafters["head"].path == str(tmp_path.resolve() / "heads")
    assert again.generate("import os\nimport os\nimport", config=loaded, max_new_tokens=4)[0].stats.num_steps > 0
    (tmp_path / "heads" / "config.json").write_text("[]")
    with pytest.warns(AutospecWarning, match=r"the drafter head `head:.*` holds other files"):
        load_policy(tmp_path / "policy.json")
    (tmp_path / "heads" / "config.json").unlink()
    (tmp_path / "heads").rmdir()
    with pytest.raises(PolicyError, match=rf"the drafter head .* is not there \({tmp_path.resolve() / 'heads'}\)"):
        load_policy(tmp_path / "policy.json", strict=True)


@pytest.mark.usefixtures("fake_engine")
def test_drafters_that_were_objects_must_be_given_again(with_rows, tmp_path):
    import torch

    policy = with_rows((None, None, None, 3))
    device = {**policy.device, "num_threads": torch.get_num_threads()}
    drafters = {**policy.drafters, "draft": ModelSource("object:mine")}
    dataclasses.replace(policy, drafters=drafters, device=device).save(tmp_path / "policy.json")
    loaded = load_policy(tmp_path / "policy.json", strict=True)
    with pytest.raises(PolicyError, match=r"must be given, as `policy.decoder\(drafters={'draft': ...}\)`, but \['dr"):
        loaded.decoder(device="cpu")
    mine = object()
    assert loaded.decoder(device="cpu", drafters={"draft": mine}).arguments["drafters"] == {"draft": mine}
    with pytest.raises(PolicyError, match=r"must be among \['draft', 'ngram'\] of the policy, but got \['other'\]"):
        loaded.decoder(device="cpu", drafters={"draft": mine, "other": mine})


@pytest.mark.usefixtures("fake_engine")
def test_no_policy_can_allow_code_to_be_imported(with_rows, tmp_path):
    import torch

    policy = with_rows((None, None, None, 3))
    device = {**policy.device, "num_threads": torch.get_num_threads()}
    drafters = {**policy.drafters, "draft": ModelSource("import:own.module:make")}
    dataclasses.replace(policy, drafters=drafters, device=device).save(tmp_path / "policy.json")
    loaded = load_policy(tmp_path / "policy.json", strict=True)
    arguments = loaded.decoder(device="cpu").arguments
    assert (arguments["drafters"], arguments["allow_import"]) == ({"draft": "import:own.module:make"}, ())
    assert loaded.decoder(device="cpu", allow_import=["own.module"]).arguments["allow_import"] == ["own.module"]
