"""The command line.

schema.py                 how a flag is declared, and its scopes
flags.py, old_flags.py    every flag once; flags of old command lines
values.py                 one value, from text or JSON
recipe.py                 what a recipe is
parse.py, json_file.py    command lines and config files
programs.py               flags of their own, and how programs end
checks.py                 rules that involve several flags
naming.py                 the experiment's name and folder
adaptation.py             what --adapt says
sweep.py, draws.py        a sweep: a file of settings that vary, and its cells
places.py                 where jobs write results and find data
identity.py               what makes two trainings, or two evaluations, the same
"""

from config.checks import check_world_size
from config.naming import experiment_folder, experiment_name, notes_on_cut
from config.parse import (
    add_defaults,
    as_written,
    check,
    parse,
    parse_args,
    recorded,
    unused_settings,
)
from config.programs import Arguments, guarded, stop
from config.values import convert, nearest

__all__ = [
    "Arguments",
    "add_defaults",
    "as_written",
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
