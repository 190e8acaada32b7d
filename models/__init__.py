"""One transformer, nine variants: names in variants.py, the network in transformer.py, its repeated part in
passes.py, which tokens are repeated in policies.py, the loss in losses.py.

    model = make_model_from_args(args)
    out = model(idx, targets=targets)          # idx (B, T) int64
    out["loss"].backward()

torch is imported only when a model is made, so that the command line can read the names at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from models.variants import VARIANTS

if TYPE_CHECKING:
    from models.transformer import Transformer


def registered_models() -> list[str]:
    """The nine long names, as --model takes them and experiments store them."""
    return list(VARIANTS)


def make_model_from_args(args: Any) -> Transformer:
    """A freshly initialised model (float32, CPU) for a Namespace of flags.

    Raises UserError for an unknown name.
    """
    from models.settings import ModelSettings
    from models.transformer import Transformer

    return Transformer(ModelSettings.from_args(args))
