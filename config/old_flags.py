"""Flags of old command lines: those accepted without effect, and those that have another form here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from config.schema import PLACE, Flag, boolean


def old(name: str, type: Callable[[str], Any], default: Any, **bounds: Any) -> Flag:
    """A flag without effect."""
    return Flag(name, type, default, "without effect", scope=PLACE, **bounds)


# without effect, accepted with their checks because published commands and recorded flags have them
OLD_FLAGS: tuple[Flag, ...] = (
    old("config_format", str, "base", choices=("base",)),
    old("add_additional_space", boolean, False),
    old("rmsnorm_eps", float, 1e-5, low=0),
    old("multiple_of", int, 256, low=1),
    old("mod_capacity_factor", float, 0.6, low=0, high=1),
    old("pos_jump_freq", int, None),
    old("pos_jump_schedule", str, None),
    old("optimization_process", str, None),
    old("total_sequence_length", int, None),
    old("lm_cache", str, "none", choices=("none",)),
    old("mem_cache_size", int, None),
    old("cache_topk", int, 1),
    old("cache_selection_method", str, "per_token_and_head"),
    old("cache_indexing_scheme", str, "by_total"),
    old("track_cache_attention", boolean, False),
    old("allow_cache_during_training", boolean, False),
)

# flags of the reference repository's programs that have another form here, and that form; under either
# spelling, - or _
OTHER_FORMS = {
    "method": (
        "get_router_weights.py takes --cascade raw position token device, in one pass over the data (cf:"
        " device; cf-sorted: position)"
    ),
    "config_loading": (
        "leave it out: the settings come from the checkpoint, and flags given here stand above them"
    ),
    "weights_40k": (
        "give the files as they are: python plot_fig5.py router_weights_ckpt_40000.npz"
        " router_weights_ckpt_60000.npz"
    ),
    "weights_60k": (
        "give the files as they are: python plot_fig5.py router_weights_ckpt_40000.npz"
        " router_weights_ckpt_60000.npz"
    ),
    "checkpoint": (
        "plots take the files of get_ppl_per_mac.py and get_router_weights.py: python plot_fig4.py"
        " ppl_per_mac.json"
    ),
}

# the same, in commands that have the other flag, whose name comes first
REPLACED = {"output": ("output_dir", "--output_dir FOLDER takes its place")}
