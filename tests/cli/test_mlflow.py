from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from autospec.cli import main
from autospec.cli import mlflow as command


def test_the_server_takes_the_place_of_the_process_on_the_store_of_the_outputs(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, Any] = {}

    class Replaced(Exception):
        pass

    def execve(path: str, arguments: list[str], environment: dict[str, str]) -> None:
        seen.update(path=path, arguments=arguments, environment=environment)
        raise Replaced

    monkeypatch.setattr(command.os, "execve", execve)
    with pytest.raises(Replaced):
        main(["mlflow", "port=5432", f"output_root={tmp_path}"])
    assert seen["arguments"][0] == seen["path"]
    assert seen["arguments"][seen["arguments"].index("--host") + 1] == "127.0.0.1"
    assert seen["arguments"][seen["arguments"].index("--port") + 1] == "5432"
    assert any(str(tmp_path) in word for word in seen["arguments"])
    assert seen["environment"]["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] == "false"
    assert "PATH" in seen["environment"]
    assert "http://127.0.0.1:5432" in capsys.readouterr().out


def test_a_port_that_is_taken_is_refused_before_anything_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(command.os, "execve", lambda *words: pytest.fail("the server was started"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["mlflow", f"port={port}", f"output_root={tmp_path / 'new'}"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"`port` must be one that is free on 127.0.0.1, but {port} is not" in shown.err
    assert shown.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("override", ["port=0", "port=x", "prt=5000"])
def test_bad_settings_are_refused(override: str, tmp_path: Path) -> None:
    assert main(["mlflow", override, f"output_root={tmp_path / 'new'}"]) == 2
    assert list(tmp_path.iterdir()) == []
