from __future__ import annotations

import dataclasses
import json
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import pytest

from autospec.comparison import Bound, Estimate
from autospec.config import SpecConfig
from autospec.errors import AutospecWarning, TrackingError
from autospec.policy import Quality
from autospec.records import Measurement, StepStats
from autospec.tracking import LocalStore, MlflowTracker, server_command
from autospec.yardsticks import LATENCY, SPEED

DRAFT = SpecConfig(drafter="draft", draft_length=3, stop_rule="confidence", stop_threshold=0.3)


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory) -> Path:
    """Return a database with MLflow's tables and nothing in them: making one takes seconds, a copy nothing."""
    root = tmp_path_factory.mktemp("database")
    store = LocalStore(root)
    store.create()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from mlflow import MlflowClient

        MlflowClient(tracking_uri=store.uri).search_experiments()
    return root / "mlflow" / "mlflow.db"


@pytest.fixture
def root(tmp_path, empty_database) -> Path:
    root = tmp_path / "outputs"
    (root / "mlflow").mkdir(parents=True)
    shutil.copy(empty_database, root / "mlflow" / "mlflow.db")
    return root


@pytest.fixture
def output_dir(root) -> Path:
    folder = root / "tune" / "2026-01-02_03-04-05"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def client(root):
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=LocalStore(root).uri)


@pytest.fixture
def tracker(output_dir, root) -> MlflowTracker:
    return MlflowTracker(output_dir, root)


PLAN = SimpleNamespace(
    target="pocket/target",
    drafters={"draft": "pocket/draft"},
    device="cpu",
    dtype="float32",
    compile=True,
    fingerprint={"device_name": "Example CPU", "num_cores": 2},
    workload="pocket",
    workload_hash="0123456789abcdef",
    categories=("docs", "edit"),
    decoding="greedy",
    max_new_tokens=48,
    space_size=100,
    settings=SimpleNamespace(to_json=lambda: {"trials": 30, "seed": 7}),
)


def measurement(prompt_id: str, seconds: float) -> Measurement:
    stats = StepStats(num_steps=4, num_drafted=8, num_accepted=6, num_step_tokens=10)
    return Measurement(DRAFT, prompt_id, "docs", "search", 1, 0, seconds, 1.0, 10, 10, 0.1, 0.1, stats, True)


def report(number: int, state: str = "complete", reason: str = "", config: SpecConfig = DRAFT) -> SimpleNamespace:
    measurements = () if state == "failed" else (measurement("a", 0.5), measurement("b", 0.25))
    return SimpleNamespace(
        number=number,
        config=config,
        state=state,
        measurements=measurements,
        estimates={} if state == "failed" else {"speedup": Estimate(2.83, 0.0, float("inf"), 2)},
        reason=reason,
        best_ratio=2.83,
        yardstick=SPEED,
        quality=Quality(0, 0, "not compared", loss=Bound(0.02, 0.04, 2), agreement=Bound(0.9, -float("inf"), 1)),
        tokens_per_second=20 / 0.75 if measurements else 0.0,
        baseline_tokens_per_second=10.0 if measurements else 0.0,
    )


def result() -> SimpleNamespace:
    return SimpleNamespace(
        speedup=Estimate(1.5, 1.4, 1.6, 24),
        decode_speedup=Estimate(1.7, 1.6, 1.8, 24),
        by=lambda yardstick: SimpleNamespace(ratio={LATENCY: Estimate(0.8, 0.7, 0.9, 24)}[yardstick]),
        categories={"docs (old)": Estimate(1.2, 1.1, 1.3, 12), "edit": Estimate(2.0, 0.0, float("inf"), 1)},
        throughput=SimpleNamespace(tokens_per_second=60.0, baseline_tokens_per_second=40.0),
        noise_floor=0.04,
        quality=Quality(24, 0, "identical"),
        stop_reason="trials",
    )


def parent_and_children(client):
    runs = client.search_runs([client.get_experiment_by_name("autospec").experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    return parent, sorted(children, key=lambda run: int(run.data.tags["autospec.trial"]))


def test_a_study_is_a_parent_run_with_a_child_for_each_trial(tracker, client):
    tracker.start(PLAN)
    tracker.log_trial(report(1))
    tracker.log_trial(report(2, state="pruned", reason="decided after 2 of 12 prompts"))
    parent, children = parent_and_children(client)
    assert parent.info.status == "RUNNING"
    assert parent.data.params["trials"] == "30"
    assert parent.data.params["compile"] == "True"
    assert parent.data.params["device.num_cores"] == "2"
    assert parent.data.tags["autospec.device"] == "Example CPU"
    assert parent.data.tags["autospec.target"] == "pocket/target"
    assert [child.info.run_name for child in children] == [f"00{n} draft x3 confidence 0.30 exact" for n in (1, 2)]
    assert [child.data.tags["autospec.state"] for child in children] == ["complete", "pruned"]
    assert children[0].data.tags["autospec.prompts"] == "a b"
    assert children[0].info.status == "FINISHED"


def test_params_are_the_fields_of_the_configuration(tracker, client):
    tracker.start(PLAN)
    tracker.log_trial(report(1))
    _, (child,) = parent_and_children(client)
    params = child.data.params
    assert sorted(params) == sorted(field.name for field in dataclasses.fields(SpecConfig))
    expected = {
        "drafter": "draft",
        "draft_length": "3",
        "stop_rule": "confidence",
        "stop_threshold": "0.3",
        "draft_length_start": "4",
        "accept_rule": "exact",
        "ngram_min": "1",
        "ngram_max": "3",
        "tree_shape": "chain",
        "tree_paths": "()",
        "with_replacement": "False",
    }
    assert {name: params[name] for name in expected} == expected


def test_prompts_are_the_steps_of_metrics(tracker, client):
    tracker.start(PLAN)
    tracker.log_trial(report(1))
    _, (child,) = parent_and_children(client)

    def history(name: str) -> list[tuple[int, float]]:
        return [(metric.step, metric.value) for metric in client.get_metric_history(child.info.run_id, name)]

    assert history("seconds") == [(0, 0.5), (1, 0.25)]
    assert history("log_speedup") == [(0, pytest.approx(0.6931472)), (1, pytest.approx(1.3862944))]
    assert history("prompt_tokens_per_second") == [(0, 20.0), (1, 40.0)]
    assert history("acceptance_rate") == [(0, 0.75), (1, 0.75)]
    assert child.data.metrics["tokens_per_second"] == pytest.approx(26.6666667)
    assert child.data.metrics["speedup"] == 2.83
    assert (child.data.metrics["mean_loss"], child.data.metrics["loss_bound"]) == (0.02, 0.04)
    assert child.data.metrics["mean_agreement"] == 0.9
    assert "agreement_bound" not in child.data.metrics  # infinite
    assert "speedup_high" not in child.data.metrics  # infinite


def test_a_failed_trial_keeps_its_reason(tracker, client):
    tracker.start(PLAN)
    tracker.log_trial(report(3, state="failed", reason="out of memory"))
    _, (child,) = parent_and_children(client)
    assert child.info.status == "FAILED"
    assert child.data.tags["autospec.reason"] == "out of memory"


def test_more_metrics_than_one_batch_takes_are_all_logged(tracker, client):
    tracker.start(PLAN)
    long = report(1)
    long.measurements = tuple(measurement(f"p{index}", 0.5) for index in range(400))
    tracker.log_trial(long)
    _, (child,) = parent_and_children(client)
    assert len(client.get_metric_history(child.info.run_id, "seconds")) == 400


def test_the_result_and_its_files_end_the_parent_run(tracker, client, output_dir):
    (output_dir / "figures").mkdir()
    policy, figure = output_dir / "policy.json", output_dir / "figures" / "history.png"
    policy.write_text("{}")
    figure.write_bytes(b"png")
    tracker.start(PLAN)
    tracker.finish(result(), [policy])
    tracker.log_files([figure])
    parent, _ = parent_and_children(client)
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["autospec.stop_reason"] == "trials"
    assert parent.data.metrics["speedup_low"] == 1.4
    assert parent.data.metrics["p95_latency_ratio"] == 0.8
    assert parent.data.metrics["tokens_per_second"] == 60.0
    assert parent.data.metrics["docs _old_.speedup"] == 1.2
    assert "edit.speedup_high" not in parent.data.metrics  # infinite
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["figures", "policy.json"]
    assert [file.path for file in client.list_artifacts(parent.info.run_id, "figures")] == ["figures/history.png"]


def test_everything_lies_under_the_outputs_root(tracker, client, output_dir, root, tmp_path, monkeypatch):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (output_dir / "policy.json").write_text("{}")
    tracker.start(PLAN)
    tracker.log_trial(report(1))
    tracker.finish(result(), [output_dir / "policy.json"])
    assert list(elsewhere.iterdir()) == []
    parent, _ = parent_and_children(client)
    assert (root / "mlflow" / "artifacts" / parent.info.run_id / "artifacts" / "policy.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["elsewhere", "outputs"]


def test_a_resumed_study_reuses_its_run_and_logs_no_trial_twice(tracker, client, output_dir, root):
    tracker.start(PLAN)
    tracker.log_trial(report(1))
    again = MlflowTracker(output_dir, root)
    again.start(PLAN)
    again.log_trial(report(1))
    again.log_trial(report(2))
    again.finish(result(), [])
    parent, children = parent_and_children(client)
    assert [child.data.tags["autospec.trial"] for child in children] == ["1", "2"]
    assert parent.info.status == "FINISHED"


def test_a_trial_cut_short_by_a_kill_is_logged_again_whole(tracker, client, output_dir, root, monkeypatch):
    tracker.start(PLAN)
    monkeypatch.setattr(tracker, "_log_metrics", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        tracker.log_trial(report(1))
    again = MlflowTracker(output_dir, root)
    again.start(PLAN)
    again.log_trial(report(1))
    _, (child,) = parent_and_children(client)
    assert child.info.status == "FINISHED"
    assert "speedup" in child.data.metrics


@pytest.mark.parametrize("content", ["", "[]", '{"uri": "http://other", "run_id": "abc"}', '{"run_id": 3}'])
def test_a_run_file_that_leads_nowhere_starts_a_new_run(tracker, client, output_dir, content):
    (output_dir / "mlflow.json").write_text(content)
    tracker.start(PLAN)
    parent, _ = parent_and_children(client)
    assert json.loads((output_dir / "mlflow.json").read_text())["run_id"] == parent.info.run_id


def test_a_deleted_run_is_not_resumed(tracker, client, output_dir, root):
    tracker.start(PLAN)
    first, _ = parent_and_children(client)
    client.delete_run(first.info.run_id)
    MlflowTracker(output_dir, root).start(PLAN)
    second, _ = parent_and_children(client)
    assert second.info.run_id != first.info.run_id


def test_an_experiment_whose_artifacts_lie_elsewhere_is_left_alone(tracker, client):
    client.create_experiment("autospec", artifact_location="file:///somewhere/else")
    tracker.start(PLAN)
    assert client.get_experiment_by_name("autospec-2").artifact_location == tracker._store.artifacts


def test_a_failure_in_the_middle_warns_once_and_is_made_up_for_at_the_end(tracker, client, monkeypatch):
    from mlflow.exceptions import MlflowException

    tracker.start(PLAN)
    tracker.log_trial(report(1))
    with monkeypatch.context() as broken:
        broken.setattr(tracker, "_log_one", lambda _: (_ for _ in ()).throw(MlflowException("database is gone\nmore")))
        with pytest.warns(AutospecWarning, match="database is gone; trials are kept"):
            tracker.log_trial(report(2))
        tracker.log_trial(report(3))  # a second warning would be an error
    tracker.finish(result(), [])
    parent, children = parent_and_children(client)
    assert [child.data.tags["autospec.trial"] for child in children] == ["1", "2", "3"]
    assert parent.info.status == "FINISHED"


def test_an_interrupted_study_is_killed_with_its_files_and_goes_on(tracker, client, output_dir, root):
    policy = output_dir / "policy.json"
    policy.write_text("{}")
    partial = result()
    partial.stop_reason = "interrupted"
    tracker.start(PLAN)
    tracker.log_trial(report(1))
    tracker.interrupt(partial, [policy])
    parent, _ = parent_and_children(client)
    assert parent.info.status == "KILLED"
    assert parent.data.tags["autospec.stop_reason"] == "interrupted"
    assert "speedup" not in parent.data.metrics  # of tune prompts
    assert [file.path for file in client.list_artifacts(parent.info.run_id)] == ["policy.json"]
    again = MlflowTracker(output_dir, root)
    again.start(PLAN)
    assert parent_and_children(client)[0].info.status == "RUNNING"
    again.log_trial(report(1))
    again.log_trial(report(2))
    again.finish(result(), [policy])
    parent, children = parent_and_children(client)
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["autospec.stop_reason"] == "trials"
    assert [child.data.tags["autospec.trial"] for child in children] == ["1", "2"]


def test_a_study_interrupted_before_it_began_leaves_no_run(tracker, client):
    tracker.connect()
    tracker.interrupt(result(), [])
    assert client.search_runs([client.get_experiment_by_name("autospec").experiment_id]) == []


def test_a_failure_at_the_end_is_a_warning(tracker, monkeypatch):
    tracker.start(PLAN)
    monkeypatch.setattr(tracker, "_put_files", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.warns(AutospecWarning, match="disk full; the study is complete in"):
        tracker.finish(result(), [])


def test_a_programming_error_is_not_hidden(tracker, monkeypatch):
    tracker.start(PLAN)
    monkeypatch.setattr(tracker, "_log_one", lambda _: (_ for _ in ()).throw(AttributeError("typo")))
    with pytest.raises(AttributeError):
        tracker.log_trial(report(1))


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "nonsense://x"])
def test_a_server_that_cannot_be_reached_is_a_tracking_error(output_dir, root, uri, monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for action in (lambda tracker: tracker.start(PLAN), MlflowTracker.check):
        with pytest.raises(TrackingError, match="MLflow must be reachable at"):
            action(MlflowTracker(output_dir, root, uri))
    assert not (output_dir / "mlflow.json").exists()


def test_a_store_that_cannot_be_made_is_a_tracking_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(TrackingError, match="folder that can be made"):
        MlflowTracker(tmp_path, tmp_path / "file").connect()


def test_checking_a_store_that_is_not_there_makes_nothing(tmp_path):
    MlflowTracker(tmp_path, tmp_path / "outputs").check()
    MlflowTracker(tmp_path, tmp_path, f"sqlite:///{tmp_path}/other/store.db").check()
    assert list(tmp_path.iterdir()) == []


def test_checking_a_store_that_works(tracker, root):
    before = (root / "mlflow" / "mlflow.db").read_bytes()
    tracker.check()
    assert (root / "mlflow" / "mlflow.db").read_bytes() == before


def test_a_store_that_is_a_file_or_no_database_is_found_by_checking(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "mlflow").write_text("")
    with pytest.raises(TrackingError, match="mlflow is a file"):
        MlflowTracker(tmp_path, tmp_path / "a").check()
    (tmp_path / "b" / "mlflow").mkdir(parents=True)
    (tmp_path / "b" / "mlflow" / "mlflow.db").write_text("no database at all" * 100)
    with pytest.raises(TrackingError, match=r"an SQLite database, but .*mlflow\.db: file is not a database"):
        MlflowTracker(tmp_path, tmp_path / "b").check()


def test_a_tracker_keeps_its_connection_for_another_folder(tracker, output_dir, root, client, monkeypatch):
    early = MlflowTracker(root, root)
    early.connect()
    monkeypatch.setattr("autospec.tracking.tracker.open_client", lambda uri: pytest.fail("connected again"))
    moved = early.into(output_dir)
    moved.start(PLAN)
    parent, _ = parent_and_children(client)
    assert json.loads((output_dir / "mlflow.json").read_text())["run_id"] == parent.info.run_id
    assert not (root / "mlflow.json").exists()


def test_logging_before_starting_is_a_tracking_error(tracker):
    with pytest.raises(TrackingError, match="`start` must be called"):
        tracker.log_trial(report(1))


def test_the_server_listens_on_loopback_and_reads_our_store(tmp_path):
    command = server_command(tmp_path / "outputs", port=5001)
    words = list(command.arguments)
    assert words[:4] == [sys.executable, "-m", "mlflow", "server"]
    assert words[words.index("--host") + 1] == "127.0.0.1"
    assert words[words.index("--port") + 1] == "5001"
    assert words[words.index("--backend-store-uri") + 1] == f"sqlite:///{tmp_path}/outputs/mlflow/mlflow.db"
    assert words[words.index("--default-artifact-root") + 1] == f"file://{tmp_path}/outputs/mlflow/artifacts"
    assert command.environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert command.environment["MLFLOW_DISABLE_TELEMETRY"] == "true"
    assert (tmp_path / "outputs" / "mlflow").is_dir()


def test_importing_the_module_does_not_import_mlflow(tmp_path):
    code = (
        "import sys; from pathlib import Path; from autospec.tracking import MlflowTracker, server_command;"
        "MlflowTracker(Path('out'), Path('.')); server_command(Path('.')); print('mlflow' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "False"
