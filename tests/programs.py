"""Starts the real programs, as users do, on the small data in tests/data."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from optim.selftest import leaves
from processes import die_with
from tests import forked

ROOT = Path(__file__).parent.parent
PEER = ROOT / "tests" / "data" / "peer"
# the same training split, and a tenth of the other: each training evaluates all of it
SMALL_DATA = ROOT / "tests" / "data" / "small"
TINY = {
    "dataset": "openwebtext2",
    "data_dir": SMALL_DATA,
    "vocab_size": 256,
    "model": "adm",
    "n_layer": 3,
    "n_layer_begin": 1,
    "n_layer_end": 1,
    "n_repeat": 3,
    "n_embd": 32,
    "n_head": 4,
    "sequence_length": 48,
    "batch_size": 4,
    "acc_steps": 2,
    "iterations": 60,
    "eval_freq": 10,
    "eval_batches": 4,
    "log_freq": 3,
    "save_checkpoint_freq": 7,
    "dropout": 0.1,
    "depth_embedding": "linear_learned",
    "device": "cpu",
    "lr": 2e-3,
}
STOPPED = 83
SLURM = ("sbatch", "sinfo", "squeue", "scontrol", "scancel", "srun", "sacct")
needs_compiler = pytest.mark.skipif(
    shutil.which("g++") is None, reason="no C++ compiler here, which torch.compile needs"
)

# settings of a training as small as can be, with no loop
ONE_LAYER: dict[str, Any] = {
    "model": "base",
    "n_layer": 1,
    "n_layer_begin": 0,
    "n_layer_end": 0,
    "n_repeat": 1,
    "depth_embedding": None,
    "dropout": 0,
}


def copy_sources(target: Path) -> None:
    """The repository as a user's clone would have it: what git tracks, and what it would not ignore."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def link_programs(folder: Path) -> Path:
    """Fill a new folder with links to the machine's programs but SLURM's: the PATH of a machine without a
    cluster.
    """
    folder.mkdir()
    for program in Path("/usr/bin").iterdir():
        if program.name not in SLURM:
            (folder / program.name).symlink_to(program)
    return folder


def flags(results: Path, **changes: Any) -> list[str]:
    """The tiny training's flags with some changed; None leaves one out."""
    settings = {**TINY, "results_base_folder": results, "exp_name": "run", **changes}
    words = []
    for name, value in settings.items():
        if value is not None:
            words += [f"--{name}", *(map(str, value) if isinstance(value, (list, tuple)) else [str(value)])]
    return words


def python(processes: int = 1) -> list[str]:
    """What runs a program, with torchrun if several processes are to."""
    return [
        sys.executable,
        *(
            ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
            if processes > 1
            else []
        ),
    ]


def command(results: Path, processes: int = 1, **changes: Any) -> list[str]:
    return [*python(processes), "main.py", *flags(results, **changes)]


def environment(**more: str) -> dict[str, str]:
    """One thread a process, so that one and two processes add in the same order, and no wandb account."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline", **more}


def start(words: list[str], **env: str) -> forked.Running:
    where = environment(**env)
    if forked.can_fork(words, where):
        return forked.Started(words, ROOT, where)
    return subprocess.Popen(
        words,
        cwd=ROOT,
        env=where,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=functools.partial(die_with, os.getpid()),
    )


def run(words: list[str], timeout: float = 300, **env: str) -> subprocess.CompletedProcess[str]:
    where = environment(**env)
    if forked.can_fork(words, where) or forked.can_launch(words, where):
        return forked.run(words, ROOT, where, timeout)
    return subprocess.run(
        words, cwd=ROOT, env=where, capture_output=True, text=True, timeout=timeout, check=False
    )


def in_read_only(place: Path, words: list[str]) -> list[str]:
    """The command where a folder cannot be written; skips the test where that cannot be had."""
    if os.geteuid():
        place.chmod(0o555)
        return words
    # permissions do not bind root: a mount does, in a namespace that ends with the process
    inside = [
        "unshare",
        "--mount",
        "sh",
        "-c",
        'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"',
        str(place),
    ]
    if (
        shutil.which("unshare") is None
        or subprocess.run([*inside, "true"], capture_output=True, check=False).returncode
    ):
        pytest.skip("root without the right to mount: nothing here can be read-only for it")
    return [*inside, *words]


def train(results: Path, processes: int = 1, **changes: Any) -> subprocess.CompletedProcess[str]:
    return run(command(results, processes, **changes))


def trained(results: Path, processes: int = 1, **changes: Any) -> Path:
    """The results folder of a training that nobody disturbed."""
    outcome = train(results, processes, **changes)
    assert outcome.returncode == 0, outcome.stderr
    return results


def wait_for_step(results: Path, step: int, process: forked.Running) -> None:
    """Until metrics.jsonl has a row of this step."""
    while process.poll() is None:
        found = list(results.glob("*/*/run/metrics.jsonl"))
        if found and f'"step": {step},' in found[0].read_text():
            return
        time.sleep(0.02)
    raise AssertionError(process.communicate())


def folder(results: Path) -> Path:
    """The only experiment below a results folder."""
    return next(results.glob("*/*/run"))


def status(results: Path) -> dict[str, Any]:
    return json.loads((folder(results) / "status.json").read_text())


def metrics(results: Path) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl without what depends on the clock."""
    rows = [json.loads(line) for line in (folder(results) / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "time"} for row in rows]


def final_state(results: Path, name: str = "ckpt.pt") -> dict[str, Any]:
    """All leaves of a checkpoint but the paths and limits that a test itself changed."""
    state = torch.load(folder(results) / name, weights_only=True)
    del state["args"]
    return leaves(state)


def trainer_of(args, world, splits, folder):
    """A training of main.py's, put together in this process."""
    from data.text import TextData
    from models import make_model_from_args
    from optim.language_model import language_model
    from optim.training import Trainer

    network = make_model_from_args(args)
    return Trainer(args, world, language_model(args, world, TextData.single(splits), network, folder), folder)
