from __future__ import annotations

import pytest

from autospec.errors import ConfigError
from autospec.tuning.settings import StudySettings


def test_all_faults_are_listed():
    with pytest.raises(ConfigError) as caught:
        StudySettings(trials=0, sampler="cmaes", objective="p95", minutes=float("nan"))
    assert len(caught.value.faults) == 4


def test_settings_go_to_json():
    assert StudySettings(trials=3).to_json()["trials"] == 3
