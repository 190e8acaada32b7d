"""What the attacks share: outcomes and refusals, job scripts, and words that a shell would run.

Each kind of attack first shows that its payload works where nothing stops it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import models.export
from config import guarded
from iridis import preflight
from tests.programs import PEER, ROOT, environment, flags

# trains within a second
QUICK: dict[str, Any] = {
    "iterations": 1,
    "n_layer": 3,
    "n_embd": 8,
    "n_head": 2,
    "acc_steps": 1,
    "batch_size": 64,
}
MARK = "attacked"  # the name of the file that a payload makes where it works
Program = Callable[[list[str]], int]


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


def check_job(words: list[str]) -> int:
    """As `python -m iridis.preflight`."""
    return guarded("job", lambda: preflight.main(words))


def one_line(outcome: Outcome, word: str = "") -> str:
    """What a refusal says; notes about the run may stand before it.

    A line break of a word that it quotes is one there too.
    """
    assert outcome.code == 2, outcome
    lines = [line for line in outcome.err.splitlines() if "error: " in line]
    assert 1 <= len(lines) <= 1 + word.count("\n") and "Traceback" not in outcome.err, outcome.err
    return lines[0]


def tree(folder: Path, *, without: Path | None = None) -> set[str]:
    return {str(path) for path in folder.rglob("*") if without is None or not path.is_relative_to(without)}


# words that a shell would run


def hostile_words(mark: str) -> dict[str, str]:
    return {
        "substitution": f"$(touch {mark})",
        "backquotes": f"`touch {mark}`",
        "semicolon": f";touch {mark};",
        "quote": f"';touch {mark};'",
        "two quotes": f'";touch {mark};"',
        "pipe": f"a|touch {mark}",
        "and": f"a&&touch {mark}&",
        "line": f"a\ntouch {mark}\n",
        "index": f"PATH[$(touch {mark})]",
        "spaces": "a b  c",
        "dash": "-rf",
        "option": "--help",
        "glob": "*",
        "braces": "{a,b}",
        "home": "~",
        "percent": "%s%n%j",
        "backslash": "a\\",
        "variable": "$HOME$$",
        "alphabets": "é漢字🙂",
    }


WORDS = hostile_words(MARK)


def landed() -> list[Path]:
    """Files of the mark's name in each folder that a program or script of ours works in."""
    return [
        path
        for folder in (ROOT, *(path for path in (ROOT / "iridis").iterdir() if path.is_dir()))
        if (path := folder / MARK).exists()
    ]


def works_or_is_refused(outcome: Outcome, word: str = "") -> None:
    assert outcome.code in (0, 2) and "Traceback" not in outcome.err, outcome
    if outcome.code == 2:
        one_line(outcome, word)
    assert not landed()


def job(package: str, *words: str, **env: str) -> Outcome:
    site = {
        "VENV_DIR": sys.prefix,
        "USE_CONDA": "no",
        "DATASET": "openwebtext2",
        "DATA_DIR": str(PEER / "datasets"),
        "N_GPUS": "0",
        "CPUS": "1",
        "WANDB": "0",
    }
    outcome = subprocess.run(
        ["bash", f"iridis/{package}/job.sh", *words],
        cwd=ROOT,
        env=environment(**{**site, **env}),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return Outcome(outcome.returncode, outcome.stdout, outcome.stderr)


SMALL = [
    word
    for word in flags(
        Path("x"),
        dataset=None,
        data_dir=None,
        results_base_folder=None,
        exp_name=None,
        iterations=2,
        model=None,
    )
    if word != "x"
]


# JSON that fills the memory or the stack


def of_a_run(tmp_path: Path) -> Path:
    return tmp_path / "results" / "openwebtext2" / models.variants.ALIASES["adm"] / "run"
