"""The Python files of the repository as parsed, for tests of how they are written."""

from __future__ import annotations

import ast
import functools
import subprocess
from pathlib import PurePath

from tests.programs import ROOT

NOT_OURS = ("tests", "bench")


@functools.cache
def parsed() -> dict[str, ast.Module]:
    """Module name -> its syntax tree, of the tracked files but tests and benchmarks."""
    listed = subprocess.run(
        ["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    trees = {}
    for path in map(PurePath, listed):
        if path.parts[0] not in NOT_OURS and (ROOT / path).is_file():
            parts = path.parent.parts if path.stem == "__init__" else path.with_suffix("").parts
            trees[".".join(parts)] = ast.parse((ROOT / path).read_text(), str(path))
    return trees


def room(module: str) -> str:
    """The top-level package or file that a module belongs to."""
    return module.partition(".")[0]
