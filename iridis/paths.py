"""Flags whose values are named in full: a pinned job runs from another folder than the one it was given in.

    python -m iridis.paths WORD...

Prints the words, each ended by a NUL. Those that name a file or folder here are absolute; which flags may is
said where they are declared (`names` in config/schema.py), under each spelling of each recipe.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from config import guarded
from config.recipe import recipes
from config.schema import PATH, PATH_OR_NAME
from optim.restore import TOKENIZER

# of programs of data, which parse their flags themselves
OF_DATA = {"input": PATH, "base_dir": PATH, "bitmask": PATH, "source": PATH_OR_NAME}


def marks() -> dict[str, str]:
    """Of every word that means a flag which names a path, with _ for -: PATH or PATH_OR_NAME."""
    found = {**OF_DATA, TOKENIZER.name: TOKENIZER.names}
    for recipe in recipes().values():
        for word in recipe.names:
            flag = recipe.flags[recipe.flag_named(word)]
            if flag.names:
                found[word.replace("-", "_")] = flag.names
    return found


def whole(words: Sequence[str]) -> list[str]:
    """The words of a command line, with absolute paths."""
    known, mark, found = marks(), "", []
    for word in words:
        if not word.startswith("--"):
            found.append(_whole(word, mark))
            continue
        flag, equals, value = word.partition("=")
        mark = known.get(flag[2:].replace("-", "_"), "")
        found.append(flag + equals + _whole(value, mark))
    return found


def _whole(value: str, mark: str) -> str:
    is_path = bool(value) and value.lower() != "none" and mark == PATH
    is_there = mark == PATH_OR_NAME and os.path.exists(value)
    return os.path.abspath(value) if is_path or is_there else value


def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    sys.stdout.buffer.write(b"".join(os.fsencode(word) + b"\0" for word in whole(words)))
    return 0


if __name__ == "__main__":
    sys.exit(guarded("iridis.paths", main))
