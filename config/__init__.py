"""The command line: every flag once (flags.py), one value (values.py), what a recipe is (recipe.py), parsing
(parse.py, json_file.py), rules that tie flags together (checks.py), the experiment's name (naming.py), what
makes two trainings the same (identity.py).
"""

from config.checks import check_world_size
from config.naming import experiment_folder, experiment_name, notes_on_cut
from config.parse import (
    add_defaults,
    check,
    guarded,
    parse,
    parse_args,
    recorded,
    stop,
    unused_settings,
)
from config.values import convert, nearest

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
