"""`main.py --selftest_resume`: a small training without disturbance and one that is killed and stopped; are
all bits the same?

The trainings are real ones: main.py as its users start it, below --results_base_folder, where checkpoints
will lie. Two processes are tried beside one where there are two GPUs, or none.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from argparse import Namespace
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

import config
from config.mixture import names_of_sources
from config.recipe import flags_of, recipe_of
from data.bins import META, TOKEN
from distributed.launch import under_torchrun
from distributed.world import pick_device
from errors import STOPPED, UserError
from files import remove_folder, write_atomically, write_json
from optim.checkpoint import load_checkpoint
from optim.names import FINAL, METRICS, STOP
from optim.outcome import of_exit_code
from optim.reader import Record
from processes import die_with

MAIN = Path(__file__).resolve().parent.parent / "main.py"
KILLS_AT = (0.2, 0.45, 0.7)  # shares of the steps
STOP_AT = 0.85
POLL_SECONDS = 0.01
# of the text that is made up: each token is near the one before, so there is something to learn
TOKENS = 200_000
SHOWN = 5


def leaves(value: Any, name: str = "") -> dict[str, Any]:
    """Every tensor and number in nested containers, by path."""
    if isinstance(value, (list, tuple)):
        value = dict(enumerate(value))
    if not isinstance(value, dict):
        return {name: value}
    return {path: leaf for key, item in value.items() for path, leaf in leaves(item, f"{name}/{key}").items()}


def differing(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """Names under which two states do not hold the very same bits."""

    def same(x: Any, y: Any) -> bool:
        if not isinstance(x, torch.Tensor) or not isinstance(y, torch.Tensor):
            return type(x) is type(y) and x == y
        return (x.dtype, x.shape) == (y.dtype, y.shape) and torch.equal(
            x.reshape(-1).view(torch.uint8), y.reshape(-1).view(torch.uint8)
        )

    return sorted(
        name for name in a.keys() | b.keys() if name not in a or name not in b or not same(a[name], b[name])
    )


def metrics_rows(folder: Path) -> list[dict[str, Any]]:
    """Whole rows of metrics.jsonl so far, without what depends on the clock."""
    try:
        lines = (folder / METRICS).read_text().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    rows = [json.loads(line) for line in lines if line.endswith("\n")]
    for row in rows:
        row.pop("time", None)
    return rows


def results_of(folder: Path) -> dict[str, Any]:
    """All that a training has computed, by name."""
    state = load_checkpoint(folder / FINAL)
    del state["args"]  # the paths that the two trainings were given differ
    return {**leaves(state), **leaves(metrics_rows(folder), "metrics.jsonl")}


class Training:
    """One experiment that is started again and again."""

    def __init__(self, args: Namespace, results: Path, processes: int) -> None:
        own = {
            "results_base_folder": str(results),
            "exp_name": "selftest",
            "run_prefix": None,
            "selftest_resume": False,
            "wandb": False,
            "stop_file": None,
            "config": None,
            "max_runtime_minutes": None,
            "log_freq": 1,
        }
        given = Namespace(**{**vars(args), **own})
        self.command = [sys.executable]
        if processes == 1:
            given.distributed_backend = None
        else:
            self.command += ["-m", "distributed.torchrun", "--standalone", "--nproc_per_node", str(processes)]
        self.command += [str(MAIN), recipe_of(vars(given)).name]
        self.folder = config.experiment_folder(given)
        for name, flag in flags_of(vars(given)).items():
            value = getattr(given, name)
            if value != flag.default:
                values = value if isinstance(value, list) else [value]
                self.command += [f"--{name}", *map(str, values)]
        self.log = results / "console.log"

    def step(self) -> int:
        """The newest step in metrics.jsonl."""
        return max((row["step"] for row in metrics_rows(self.folder)), default=0)

    def run(self, until: int | None = None, kill: bool = False) -> bool:
        """Start the training, and kill or stop it once it has passed a step; False if it ended before.

        Raises UserError where it fails.
        """
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with open(self.log, "ab") as log:
            me = os.getpid()
            path = filter(None, [str(MAIN.parent), os.environ.get("PYTHONPATH")])
            process = subprocess.Popen(
                self.command,
                stdout=log,
                stderr=log,
                start_new_session=True,
                preexec_fn=lambda: die_with(me),
                env={"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": os.pathsep.join(path)},
            )
        try:
            while process.poll() is None and (until is None or self.step() < until):
                time.sleep(POLL_SECONDS)
            disturbed = process.poll() is None
            if disturbed and kill:
                os.killpg(process.pid, signal.SIGKILL)
            elif disturbed:
                (self.folder / STOP).touch()
            code = process.wait()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        (self.folder / STOP).unlink(missing_ok=True)
        if code not in (0, STOPPED) and not (disturbed and kill):
            outcome = Record(self.folder).outcome or of_exit_code(code)
            raise UserError(f"a training of the self-test failed: {outcome.reason}; see {self.log}")
        return disturbed


def compare(args: Namespace, work: Path, processes: int) -> list[str]:
    """Train undisturbed and disturbed with this number of processes; returns the names of what differs."""
    where = f"{processes} process{'es' if processes > 1 else ''}"
    undisturbed, disturbed = (
        Training(args, work / f"{name}_{processes}", processes) for name in ("undisturbed", "disturbed")
    )
    begin = time.monotonic()
    undisturbed.run()
    print(f"{where}: {args.iterations} steps undisturbed in {time.monotonic() - begin:.0f} s", flush=True)
    draw, interruptions = random.Random(args.seed), []
    for share, kill in [*((share, True) for share in KILLS_AT), (STOP_AT, False)]:
        if disturbed.run(until=max(1, int(share * args.iterations)), kill=kill):
            interruptions.append(f"{'killed' if kill else 'stopped'} at step {disturbed.step()}")
            time.sleep(draw.random())  # the next start may meet leftovers of any age
    if not any("killed" in what for what in interruptions):
        raise UserError(
            f"the self-test ended before it could be killed: give more --iterations than {args.iterations}"
        )
    disturbed.run()
    print(f"{where}: the same again, {', '.join(interruptions)}, then to the end", flush=True)
    expected, found = results_of(undisturbed.folder), results_of(disturbed.folder)
    wrong = differing(expected, found)
    tensors = sum(isinstance(value, torch.Tensor) for value in expected.values())
    print(
        f"{where}: compared {tensors} tensors and {len(expected) - tensors} other values of weights,"
        f" optimiser, generators and metrics: {f'{len(wrong)} differ' if wrong else 'the same bits'}",
        flush=True,
    )
    return wrong


def make_up(args: Namespace, place: Path) -> None:
    """Write a dataset of tokens drawn at random, or each source of a mixture of these."""
    draw = np.random.default_rng(args.data_seed)
    for dataset in names_of_sources(args.dataset) or [args.dataset]:
        folder = place / dataset
        folder.mkdir(parents=True)
        tokens = (draw.integers(-3, 4, TOKENS).cumsum() % args.vocab_size).astype(TOKEN)
        write_json(folder / META, {"end_of_text": 0})  # for --packing
        for name, part in (("train.bin", tokens[TOKENS // 10 :]), ("val.bin", tokens[: TOKENS // 10])):
            write_atomically(folder / name, part.tobytes())


def selftest(args: Namespace, sizes: Sequence[int] = (1, 2)) -> int:
    """Print the verdict; returns 0 if every bit is the same, else 1. Raises UserError where the test cannot
    run.

    sizes: numbers of processes to try, two only where that is possible.
    """
    if under_torchrun():
        raise UserError(
            "--selftest_resume starts torchrun itself: run it as python main.py --selftest_resume"
        )
    device = pick_device(args.device)
    has_two = args.acc_steps % 2 == 0 and (device.type == "cpu" or torch.cuda.device_count() > 1)
    tried = [size for size in sizes if size == 1 or has_two]
    if not tried:
        raise UserError("two processes need two GPUs, or --device cpu, and an even number of --acc_steps")
    work = Path(args.results_base_folder) / f"selftest_resume.{os.getpid()}"
    work.mkdir(parents=True)
    if args.dataset == recipe_of(vars(args)).selftest.get("dataset"):
        args.data_dir = str(work / "datasets")
        (recipe_of(vars(args)).make_up or make_up)(args, work / "datasets")
    args.deterministic = args.deterministic or device.type == "cuda"
    wrong = []
    for size in tried:
        wrong += compare(args, work, processes=size)
    if wrong:
        print(
            "FAIL: a resumed training is not the undisturbed one here;"
            f" {', '.join(wrong[:SHOWN])}{', ...' if len(wrong) > SHOWN else ''} differ. Both are kept in"
            f" {work}"
        )
        return 1
    remove_folder(work)
    print(
        f"PASS: on this machine ({torch.cuda.get_device_name(device) if device.type == 'cuda' else 'CPU'},"
        f" torch {torch.__version__}) a training that is killed and stopped ends with the same bits as one"
        " that is not"
    )
    return 0
