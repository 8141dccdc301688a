"""Multi-token prediction: a target drafts with the module that it was published with (DeepSeek-V3, 2412.19437).

The module is asked again for every further token, on the feature that it expected itself, and keeps keys and values,
as EAGLE's network does, whose drafter this is. At committed positions the features are the target's own.
"""

from __future__ import annotations

from autospec.engine.drafters.eagle import EagleDrafter
from autospec.engine.model import CausalLM
from autospec.engine.mtp import MtpModule


class MtpDrafter(EagleDrafter):
    """Slot i of its cache holds the pair of the feature of position i and token i + 1.

    Args:
        target: Whose module drafts.

    Raises:
        ModelError: See `MtpModule`.
    """

    def __init__(self, target: CausalLM) -> None:
        super().__init__(MtpModule(target), "mtp")
