from __future__ import annotations

import pickle

import pytest

from autospec import errors


@pytest.mark.parametrize(
    ("name", "builtin"),
    [
        ("ConfigError", ValueError),
        ("ModelError", RuntimeError),
        ("WorkloadError", ValueError),
        ("DrafterError", RuntimeError),
        ("MeasurementError", RuntimeError),
        ("MismatchError", errors.MeasurementError),
        ("BaselineError", errors.MeasurementError),
        ("PolicyError", ValueError),
        ("ProfileError", ValueError),
        ("ReplayError", RuntimeError),
        ("ReplayMiss", errors.ReplayError),
        ("TrackingError", RuntimeError),
        ("TrainingError", RuntimeError),
    ],
)
def test_every_error_is_ours_and_the_builtin_that_fits(name: str, builtin: type[Exception]) -> None:
    error = getattr(errors, name)
    assert issubclass(error, errors.AutospecError)
    assert issubclass(error, builtin)


def test_the_tree_in_the_docstring_names_every_error() -> None:
    defined = {name for name in vars(errors) if name.endswith(("Error", "Warning"))}
    assert errors.__doc__ is not None
    assert {name for name in defined if name not in errors.__doc__} == set()


def test_config_error_lists_all_faults() -> None:
    error = errors.ConfigError(["first fault", "second fault"])
    assert error.faults == ["first fault", "second fault"]
    assert str(error) == "first fault\nsecond fault"


def test_config_error_takes_a_single_fault() -> None:
    assert errors.ConfigError("only fault").faults == ["only fault"]


def test_config_error_keeps_its_faults_through_pickle() -> None:
    error = pickle.loads(pickle.dumps(errors.ConfigError(["a", "b"])))
    assert type(error) is errors.ConfigError
    assert error.faults == ["a", "b"]


def test_config_error_owns_its_list() -> None:
    faults = ["a"]
    error = errors.ConfigError(faults)
    faults.append("b")
    assert error.faults == ["a"]
