"""One transformer, nine variants.

    variants.py, settings.py            the table of variants; the flags of a model
    transformer.py, layers.py           the network and its parts
    modern.py                           modern blocks
    passes.py, policies.py, routing.py  the repeated part, and which tokens take each pass
    attention.py, planner.py, flex.py   attention over the keys of all passes
    trials.py                           which of a device's kernels can be used
    memory.py, cache.py                 keys and values in training and in generation
    hidden.py, loss.py, losses.py       the output before the head; losses
    adapters.py                         low-rank matrices, trained beside frozen ones
    fp8.py                              linear layers in FP8, in training
    network.py, weights.py, macs.py     what training asks of a network; loading; multiply-accumulates
    footprint.py                        bytes of a training by formula
    export.py, hugging_face.py          a folder for transformers
    byte_format.py                      names of the public byte GPT
    coalescence/                        networks of coalescence times

    model = make_model_from_args(args)
    out = model(idx, targets=targets)          # idx (B, T) int64
    out["loss"].backward()

torch is imported only when a model is made, so that the command line can read the names at once.
"""

from __future__ import annotations

from typing import Any

import errors  # noqa: F401  (it speaks where a program cannot start)
from models.variants import VARIANTS


def registered_models() -> list[str]:
    """The nine long names, as --model takes them and experiments store them."""
    return list(VARIANTS)


def make_model_from_args(args: Any) -> Any:
    """A freshly initialised model (float32, CPU) for a Namespace of flags: a Transformer, or where --model is
    a preset of coalescence times, such a network for sequences of its usual length.

    Raises UserError for an unknown name.
    """
    from models.coalescence.settings import PRESETS

    if args.model in PRESETS:
        from models.coalescence.network import CoalescenceTransformer
        from models.coalescence.settings import settings_of

        return CoalescenceTransformer(settings_of(args))
    from models.settings import ModelSettings
    from models.transformer import Transformer

    return Transformer(ModelSettings.from_args(args))
