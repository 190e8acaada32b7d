"""Runs the programs in forks of one process that has imported them all: real exit codes, real stderr, no
seconds for a start.
"""

from __future__ import annotations

import importlib
import multiprocessing
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.forked import PRELOADED, code_of, take_place
from tests.programs import ROOT, environment

SECONDS = 90.0  # a case takes less than three; more is a hang, also on a machine that others use
MODULES = {
    "main.py": "main",
    "eval.py": "eval",
    "generate.py": "generate",
    "get_ppl_per_mac.py": "get_ppl_per_mac",
    "get_router_weights.py": "get_router_weights",
    "downstream.py": "downstream",
    "plot_fig2.py": "plot_fig2",
    "plot_fig3.py": "plot_fig3",
    "plot_fig4.py": "plot_fig4",
    "plot_fig5.py": "plot_fig5",
    "status.py": "status",
    "python -m report": "report.__main__",
    "data.tokenize": "data.tokenize",
    "data.download": "data.download",
    "data.inspect": "data.inspect",
    "models.export": "models.export",
    "iridis.chain": "iridis.chain",
}  # by the name that a program gives itself in its errors
IMPORTED_LATE = [
    "pytest",
    "torch",
    "matplotlib.pyplot",
    "safetensors.torch",
    "optim.training",
    "optim.evaluate",
    "optim.generation",
    "optim.routers",
    "optim.card",
    "report.figures",
    "report.collect",
    "report.compare",
    "report.render",
    "data.setup",
    "data.bpe",
]
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(
    [*PRELOADED, *IMPORTED_LATE, *MODULES.values(), "tests.chaos.forks", "tests.freeze"]
)


@dataclass(frozen=True)
class Outcome:
    code: int | None  # None: it had to be killed after SECONDS
    out: str
    err: str


def _work(module: str, argv: list[str], folder: str, outputs: list[str], env: dict[str, str]) -> None:
    """In the fork: `python program argv`, but that the program is imported already."""
    take_place(folder, outputs, env)
    try:
        sys.exit(importlib.import_module(module).main(argv))
    finally:
        sys.stdout.flush()


def fork(program: str, argv: list[str], folder: Path, **env: str) -> Outcome:
    """Run `program argv` in a folder."""
    outputs = [folder.with_name(f"{folder.name}.{name}") for name in ("out", "err")]
    process = _context.Process(
        target=_work, args=(MODULES[program], argv, str(folder), list(map(str, outputs)), environment(**env))
    )
    return Outcome(
        code_of(process, SECONDS),
        *(path.read_text(errors="replace") if path.exists() else "" for path in outputs),
    )


def start(program: str, argv: list[str], folder: Path, **env: str) -> Outcome:
    """The same as a user does it: `python program argv`."""
    where = [str(ROOT / program)] if program.endswith(".py") else ["-m", program.removeprefix("python -m ")]
    return wait_for([sys.executable, *where, *argv], folder, PYTHONPATH=str(ROOT), **env)


def wait_for(words: list[str], folder: Path, **env: str) -> Outcome:
    try:
        done = subprocess.run(
            words,
            cwd=folder,
            env=environment(**env),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=SECONDS,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired as late:
        return Outcome(None, str(late.stdout), str(late.stderr))
    return Outcome(done.returncode, done.stdout, done.stderr)
