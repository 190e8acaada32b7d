"""The flags of a checkpoint's network, for a training that begins with its weights on other data.

    python -m optim.inherited CHECKPOINT            # JSON for --config
    python -m optim.inherited CHECKPOINT --words    # recipe and flags, a word a line, for iridis/tune

    python main.py --config <(python -m optim.inherited CHECKPOINT) --init_from CHECKPOINT --objective sft ...

They are those of models.settings that differ from the recipe's defaults, with the recipe where it is not the
default one. Adapters are not among them: --init_from merges those of a checkpoint.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import config
from config.recipe import DEFAULT_RECIPE, recipe_of
from config.schema import PLACE
from errors import UserError
from models.settings import ModelSettings
from models.variants import VARIANTS

PROG = "optim.inherited"
OWN = ("adapt",)  # of each training


def of_settings(trained: Mapping[str, Any]) -> dict[str, Any]:
    """The network's flags among those that a training recorded, and its recipe where it is named."""
    flags = recipe_of(trained).flags
    found = {"recipe": trained["recipe"]} if "recipe" in trained else {}
    for field in fields(ModelSettings):
        flag, name = flags.get(field.name), field.name
        if flag is None or flag.scope == PLACE or name in OWN or name not in trained:
            continue
        if trained[name] != flag.default:
            found[name] = trained[name]
    return found


def of_checkpoint(given: str) -> dict[str, Any]:
    """Those of a checkpoint file, or of an experiment's newest checkpoint. Raises UserError."""
    from optim.opening import open_checkpoint
    from optim.restore import find_checkpoint, trained_settings

    path = find_checkpoint(given, "CHECKPOINT")
    trained = trained_settings(path, open_checkpoint(path))
    if "objective" not in recipe_of(trained).flags:
        raise UserError(f"{path} is of recipe {trained['recipe']}, whose networks are not of text")
    return of_settings(trained)


def of_place(given: str, recipe: str) -> dict[str, Any]:
    """What the path of an experiment says, which will be trained first. Raises UserError."""
    model = Path(given).parent.name
    if model not in VARIANTS:
        raise UserError(
            f"CHECKPOINT {given}: there is none yet, nor does the path say of which model it will be"
            " (RESULTS_DIR/DATASET/MODEL/NAME)"
        )
    found = {"model": model} if recipe == DEFAULT_RECIPE else {"recipe": recipe, "model": model}
    recipe_of(found)  # which may be none
    return found


def is_begun(given: str) -> bool:
    """Whether there is a checkpoint, or something else than a folder without any."""
    from optim.peek import newest_first

    path = Path(given)
    return path.is_file() or (path.is_dir() and bool(newest_first(path))) or not path.is_absolute()


def as_config(found: Mapping[str, Any]) -> dict[str, Any]:
    """As --config takes them: in a section, where the recipe's files have sections."""
    recipe = recipe_of(found)
    if not recipe.sections:
        return dict(found)
    flags = {name: value for name, value in found.items() if name != "recipe"}
    return {"recipe": recipe.name, "flags": flags}


def as_words(found: Mapping[str, Any]) -> list[str]:
    """As main.py's command line has them."""
    recipe = found.get("recipe", DEFAULT_RECIPE)
    words = [] if recipe == DEFAULT_RECIPE else [recipe]
    for name, value in found.items():
        if name != "recipe":
            values = value if isinstance(value, list) else [value]
            words += [f"--{name}", *map(str, values)]
    return words


def run(argv: Sequence[str] | None) -> int:
    parser = config.Arguments(prog=PROG, description="Print the flags of a checkpoint's network.")
    parser.add_argument("checkpoint", help="checkpoint file, or an experiment's folder or name")
    parser.add_argument("--words", action="store_true", help="as words of a command line, one a line")
    parser.add_argument(
        "--later",
        metavar="RECIPE",
        help="an experiment may have no checkpoint yet, as it is trained first, by this recipe: print what"
        " its path says",
    )
    given = parser.parsed(argv)
    if given.later is not None and not is_begun(given.checkpoint):
        found = of_place(given.checkpoint, given.later)
    else:
        found = of_checkpoint(given.checkpoint)
    print("\n".join(as_words(found)) if given.words else json.dumps(as_config(found), indent=2))
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    return config.guarded(PROG, lambda: run(argv))


if __name__ == "__main__":
    sys.exit(main())
