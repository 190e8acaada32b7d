"""The command line: every flag once (flags.py), its parsing and checks (parse.py), the experiment's name
(naming.py).
"""

from config.naming import experiment_folder, experiment_name, notes_on_cut
from config.parse import (
    add_defaults,
    check,
    check_world_size,
    convert,
    guarded,
    nearest,
    parse,
    parse_args,
    recorded,
    stop,
    unused_settings,
)

__all__ = [
    "add_defaults",
    "check",
    "check_world_size",
    "convert",
    "experiment_folder",
    "experiment_name",
    "guarded",
    "nearest",
    "notes_on_cut",
    "parse",
    "parse_args",
    "recorded",
    "stop",
    "unused_settings",
]
