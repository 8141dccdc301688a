"""Every error that autospec raises on purpose.

AutospecError
├── ConfigError (ValueError)      a setting, override, search space or combination that cannot work
├── ModelError (RuntimeError)     a model or tokenizer that cannot be loaded or used
├── WorkloadError (ValueError)    prompts that cannot be read
├── DrafterError (RuntimeError)    a drafter that raised, or whose draft cannot be verified
├── MeasurementError (RuntimeError)  a measurement that cannot be believed or made
├── MismatchError (MeasurementError) a lossless rule whose output differs from plain decoding
├── BaselineError (MeasurementError) plain decoding that cannot be measured on a prompt
├── ScorerError (MeasurementError) a task scorer that cannot judge an output
├── PolicyError (ValueError)      a policy file that cannot be trusted
├── ProfileError (ValueError)     a file of a hardware profile that cannot be trusted
├── ReplayError (RuntimeError)    a configuration that a trace cannot replay, or a trace that cannot be read
├── ReplayMiss (ReplayError)      a draft that was not recorded
├── TrackingError (RuntimeError)  an experiment tracker that cannot be reached
└── TrainingError (RuntimeError)  a corpus or a training run that cannot go on

AutospecWarning (UserWarning) is the category of every warning. Messages state the rule first, then the values that
broke it.
"""

from __future__ import annotations


class AutospecError(Exception):
    """Base of all errors raised by autospec."""


class AutospecWarning(UserWarning):
    """Category of every warning that autospec gives."""


class ConfigError(AutospecError, ValueError):
    """A setting or a combination of settings that cannot work.

    Args:
        faults: One message, or all messages where several things are wrong at once.
    """

    def __init__(self, faults: str | list[str]) -> None:
        self.faults: list[str] = [faults] if isinstance(faults, str) else list(faults)
        super().__init__("\n".join(self.faults))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[list[str]]]:
        return type(self), (self.faults,)


class ModelError(AutospecError, RuntimeError):
    """A model or tokenizer that cannot be loaded, or cannot do what is asked of it."""


class WorkloadError(AutospecError, ValueError):
    """A workload that cannot be read or holds no usable prompt."""


class DrafterError(AutospecError, RuntimeError):
    """A drafter that raised while it ran, or whose draft cannot be verified."""


class MeasurementError(AutospecError, RuntimeError):
    """A measurement that could not be made or cannot be believed."""


class MismatchError(MeasurementError):
    """A lossless rule produced other tokens than plain decoding, and no tie excuses it."""


class BaselineError(MeasurementError):
    """Plain decoding could not be measured on a prompt, which is the fault of no configuration."""


class ScorerError(MeasurementError):
    """A task scorer raised or returned no number, which is the fault of no configuration."""


class PolicyError(AutospecError, ValueError):
    """A policy file that is malformed, tampered with, or made for something else."""


class ProfileError(AutospecError, ValueError):
    """A file of a hardware profile that is malformed, tampered with, or of another schema."""


class ReplayError(AutospecError, RuntimeError):
    """A trace that cannot be read, or a configuration whose outcome a trace does not decide."""


class ReplayMiss(ReplayError):
    """A draft that a configuration reaches was not recorded; a recorder can add it."""


class TrackingError(AutospecError, RuntimeError):
    """An experiment tracker that cannot be reached or refuses what is logged."""


class TrainingError(AutospecError, RuntimeError):
    """A corpus that cannot be built or a training run that cannot go on."""
