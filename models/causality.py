"""Whether a model's output at a token can depend on later tokens of its row."""

from __future__ import annotations

from models.settings import ModelSettings
from models.variants import ROUTED_POLICIES


def looks_ahead(settings: ModelSettings, training: bool = False) -> bool:
    """Routing picks the best scores of a whole row, so what stands later (padding, too) changes who is
    picked.

    Where everyone goes on there is no choice, and routed models are causal like the others.
    """
    everyone_goes_on = not training and all(share == 1 for share in settings.eval_length_factor or ())
    return settings.row.policy in ROUTED_POLICIES and not everyone_goes_on
