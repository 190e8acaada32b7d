"""The job scripts on the private cluster: submit, watch, look at what they left."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from files import write_atomically
from tests.programs import SMALL_DATA, TINY, copy_sources, flags
from tests.slurm.cluster import NODES, Cluster, wait_until

PATIENCE = 240.0  # seconds for anything that a cluster with two busy cores does
# seconds a step, of a training that is to be met while it runs, and of one that is not to end before much
# else has happened. SLURM signals a job of one minute within its first 45 seconds.
STEADY, SLOW = 0.25, 1.0
# one process on a CPU, with nothing that needs a network; each test has its own RESULTS_DIR
SETTINGS = {
    "USE_CONDA": "no",
    "DATA_DIR": str(SMALL_DATA),
    "DATASET": "openwebtext2",
    "OMP_NUM_THREADS": "1",
    "WANDB": "0",
    "HEALTH_CHECK": "0",
    "NOTIFY_EMAIL": "",
    "N_GPUS": "0",
    "CPUS": "2",
    "MEMORY": "2G",
    "TIME_LIMIT": "5",
}


ACC_STEPS = 2
# at the end of the clone's data/token_source.py: a training takes as long as the file PACE says (seconds a
# step, slept), fails from step CRASH_AT on, or hangs once at step HANG_AT
DISTURBANCES = f"""

import os
import time

_samples = TokenSource.samples


def _disturbed_samples(self, step, first, count):
    done = first // {TINY["batch_size"] * ACC_STEPS}
    hung, pace = Path(os.environ["PACE"] + ".hung"), Path(os.environ["PACE"])
    if done >= int(os.environ.get("CRASH_AT", 10**9)):
        raise IndexError("a bug")
    if done >= int(os.environ.get("HANG_AT", 10**9)) and not hung.exists():
        hung.touch()
        time.sleep(1000)
    if pace.exists():
        time.sleep(float(pace.read_text() or 0) / {ACC_STEPS})
    return _samples(self, step, first, count)


TokenSource.samples = _disturbed_samples
"""


# at the end of a module of genomes: while there is a file HOLD, a process makes as many calls as it says, and
# hangs in the next one
HELD_CALLS = """

import os
import time
from pathlib import Path

_quick, _calls = {name}, 0


def {name}(*given, **named):
    global _calls
    _calls += 1
    hold = Path(os.environ.get("HOLD", "/nowhere"))
    if hold.exists() and _calls > int(hold.read_text()):
        time.sleep(1000)
    return _quick(*given, **named)
"""
HELD = {"tree_file.py": "write_trees", "shards.py": "_packed"}  # a call for each simulation


def disturbed_clone(folder: Path) -> Path:
    """A clone of the repository whose trainings are as slow as a test needs them, and whose work on genomes
    waits where it is to.
    """
    copy_sources(folder)
    with open(folder / "data" / "token_source.py", "a") as file:
        file.write(DISTURBANCES)
    for module, name in HELD.items():
        with open(folder / "data" / "genomes" / module, "a") as file:
            file.write(HELD_CALLS.format(name=name))
    return folder


def tiny(**changes: Any) -> list[str]:
    """Flags of the tiny training as they follow `--`; where its results go is the job script's business."""
    changes = {
        "eval_freq": 50,
        "acc_steps": ACC_STEPS,
        **changes,
        "data_dir": None,
        "dataset": None,
        "exp_name": None,
    }
    words = flags(Path(), **changes)
    at = words.index("--results_base_folder")
    return words[:at] + words[at + 2 :]


@dataclass
class Outcome:
    """What a call of a job script said; the job and the run folder, where it made them."""

    code: int
    out: str
    err: str

    def said(self, what: str) -> str:
        return next(
            (line.split(":", 1)[1].strip() for line in self.out.splitlines() if line.startswith(f"{what}:")),
            "",
        )

    @property
    def job(self) -> str:
        return self.said("job").split(" ")[0]

    @property
    def job_name(self) -> str:
        return self.said("job").split(" ")[1].strip("()")

    @property
    def run_dir(self) -> Path:
        return Path(self.said("run folder"))


@dataclass
class Site:
    """A clone of the repository on the cluster, and a user with settings in the environment."""

    cluster: Cluster
    repo: Path
    results: Path
    env: dict[str, str] = field(default_factory=dict)

    @property
    def pace_file(self) -> Path:
        return self.results.with_name(f"{self.results.name}.pace")

    def pace(self, seconds: float) -> None:
        """Have each step of the trainings take that long at least, from now on; they sleep meanwhile."""
        self.pace_file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self.pace_file, str(seconds))

    def environment(self, **more: str) -> dict[str, str]:
        return {
            **SETTINGS,
            "VENV_DIR": str(self.cluster.venv),
            "PACE": str(self.pace_file),
            "SCRATCH_DIR": str(self.results.parent),
            "RESULTS_DIR": str(self.results),
            **self.env,
            **more,
        }

    def script(self, package: str) -> str:
        return str(self.repo / "iridis" / package / "job.sh")

    def call(self, package: str, *words: str, **env: str) -> Outcome:
        """`bash iridis/PACKAGE/job.sh WORDS...`, as a user calls it."""
        done = self.cluster.run(
            "bash", self.script(package), *words, timeout=PATIENCE, **self.environment(**env)
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    def submit(self, package: str, *words: str, **env: str) -> Outcome:
        outcome = self.call(package, *words, **env)
        assert outcome.code == 0 and outcome.job, outcome.out + outcome.err
        return outcome

    def start(self, package: str, *words: str, **env: str) -> subprocess.Popen[str]:
        """The same in the background, in a process group of its own."""
        return subprocess.Popen(
            ["bash", self.script(package), *words],
            env={**os.environ, **self.cluster.env, **self.environment(**env)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    # the queue

    def queue(self, layout: str = "%i", *options: str) -> list[str]:
        return self.cluster.run("squeue", "-h", *options, "-o", layout).stdout.split("\n")[:-1]

    def show(self, job: str, what: str) -> str:
        """A field of `scontrol show job`, like JobState."""
        words = self.cluster.run("scontrol", "show", "job", "-o", job).stdout.split()
        return next((word.split("=", 1)[1] for word in words if word.startswith(f"{what}=")), "")

    def scancel(self, *jobs: str) -> None:
        if jobs:
            self.cluster.run("scancel", *jobs)
            wait_until(lambda: not set(jobs) & set(self.queue()), 60, f"the end of cancelled jobs {jobs}")

    @contextmanager
    def only_node(self, node: str) -> Iterator[None]:
        """Jobs that start meanwhile start on this node."""
        others = [name for name in NODES if name != node]
        for name in others:
            self.cluster.run("scontrol", "update", f"NodeName={name}", "State=DRAIN", "Reason=test")
        try:
            yield
        finally:
            for name in others:
                self.cluster.run("scontrol", "update", f"NodeName={name}", "State=RESUME")

    def take_node(self, node: str) -> None:
        """Have a job of a higher partition take the whole of a node for a moment."""
        self.cluster.run(
            "sbatch",
            "--partition=ecsstudents_l4",
            f"--nodelist={node}",
            "--cpus-per-task=16",
            "--output=/dev/null",
            "--wrap=sleep 1",
        )

    def wait(self, outcome: Outcome, seconds: float = PATIENCE) -> None:
        """Until no job of a chain is in the queue any more."""
        try:
            wait_until(
                lambda: not self.queue("%i", f"--name={outcome.job_name}"),
                seconds,
                f"the end of {outcome.job_name}",
            )
        except TimeoutError as error:
            raise AssertionError(f"{error}\n{logs(outcome.run_dir)}") from None

    def wait_for_step(self, step: int, name: str = "run", job: str | None = None) -> None:
        """Until a training (of this job) has logged a step."""

        def there() -> bool:
            found = list(self.results.glob(f"*/*/{name}/metrics.jsonl"))
            rows = (
                [json.loads(line) for line in found[0].read_bytes().splitlines(True) if line.endswith(b"\n")]
                if found
                else []
            )
            return any(row["step"] >= step for row in rows)

        wait_until(there, PATIENCE, f"step {step} of {name} (job {job})")

    # what a training left

    def experiment(self, name: str = "run") -> Path:
        (found,) = self.results.glob(f"*/*/{name}")
        return found

    def ledger(self, name: str = "run") -> list[dict[str, Any]]:
        """Its rows; none before the training has made it."""
        found = list(self.results.glob(f"*/*/{name}/segments.jsonl"))
        return [json.loads(line) for line in found[0].read_text().splitlines()] if found else []

    def run_folders(self, package: str) -> set[Path]:
        return set((self.repo / "iridis" / package).glob("run_*"))


def logs(run_dir: Path) -> str:
    """All that a run's jobs said, for messages of failed tests."""
    return "\n".join(
        f"--- {path}\n{path.read_text(errors='replace')[-3000:]}" for path in sorted(run_dir.glob("slurm_*"))
    )


def error_lines(run_dir: Path) -> list[str]:
    """Lines of a run's .err files by which the job scripts tell why they stop."""
    return [
        line
        for path in sorted(run_dir.glob("slurm_*.err"))
        for line in path.read_text().splitlines()
        if line.startswith("error: ")
    ]


def is_contiguous(ledger: list[dict[str, Any]], iterations: int) -> bool:
    """Whether each segment began where the one before had saved, from the first step to the last."""
    edges = [row["start_step"] for row in ledger] + [iterations]
    return edges[0] == 0 and all(
        row["end_step"] == after for row, after in zip(ledger, edges[1:], strict=True)
    )
