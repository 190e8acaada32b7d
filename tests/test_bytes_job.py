"""The job of byte-level training, run as users run it, without SLURM and without prepared data."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import time
from pathlib import Path

import pytest

from optim.selftest import differing
from tests.corpora import write_sources
from tests.job_calls import call, is_one_line, job
from tests.programs import final_state, folder, metrics

pytestmark = pytest.mark.usefixtures("no_slurm")

STEPS = 40
SMALL = {
    "n_layer": 1,
    "n_embd": 32,
    "n_head": 2,
    "mlp_width": 64,
    "sequence_length": 32,
    "batch_size": 4,
    "warmup_steps": 5,
    "eval_freq": 10,
    "eval_batches": 2,
    "log_freq": 1,
    "save_checkpoint_freq": 7,
    "device": "cpu",
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without lib_licenses, which a training makes in a second; the others take longer."""
    folder = tmp_path_factory.mktemp("datasets")
    write_sources(folder, {"lib_code": 9000, "lib_docs": 4000}, tokenizer="bytes")
    return folder


def words(clone: Path) -> list[str]:
    flags = [str(word) for name, value in SMALL.items() for word in (f"--{name}", value)]
    one_core = ["taskset", "-c", str(min(os.sched_getaffinity(0)))]
    program = [*one_core, "env", "-u", "OMP_NUM_THREADS", "bash", str(job(clone, "bytes-train"))]
    return [*program, "smoke", "--local", "--name", "run", "--", *flags]


def settings(results: Path, data_dir: Path) -> dict[str, str]:
    return {
        "RESULTS_DIR": str(results),
        "DATA_DIR": str(data_dir),
        "SCRATCH_DIR": str(results.parent),
        "ITERATIONS": str(STEPS),
    }


@pytest.fixture(scope="module")
def calm(
    no_slurm: None, clone: Path, data_dir: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """The results of a run that nobody disturbed, and what it printed."""
    results = tmp_path_factory.mktemp("calm") / "exps"
    done = call(*words(clone), **settings(results, data_dir))
    assert done.returncode == 0, done.stderr
    return results, done.stdout


def kill_at(results: Path, step: int, process: subprocess.Popen[str]) -> None:
    """SIGKILL to the training once it has logged a step."""
    while process.poll() is None:
        found = list(results.glob("*/*/run/metrics.jsonl"))
        if found and f'"step": {step},' in found[0].read_text():
            holder = json.loads((folder(results) / "lock").read_text())
            os.kill(int(holder["job"].rpartition(":")[2]), signal.SIGKILL)
            break
        time.sleep(0.02)
    process.wait()


@pytest.mark.slow
def test_a_killed_run_that_is_repeated_ends_with_the_same_bits(
    clone: Path, data_dir: Path, calm: tuple[Path, str], tmp_path: Path
) -> None:
    results = tmp_path / "exps"
    env = {**os.environ, "USE_CONDA": "no", "WANDB": "0", **settings(results, data_dir)}
    with subprocess.Popen(
        words(clone), env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, text=True
    ) as process:
        kill_at(results, STEPS // 2, process)
    assert process.returncode != 0 and not (folder(results) / "summary.json").exists()
    assert call(*words(clone), **settings(results, data_dir)).returncode == 0
    for name in ("ckpt.pt", "best.pt"):
        assert differing(final_state(calm[0], name), final_state(results, name)) == []
    assert metrics(results) == metrics(calm[0])


@pytest.mark.slow
def test_the_first_lines_show_each_source(calm: tuple[Path, str]) -> None:
    shown = re.findall(r"^  (lib_\w+): .* share ([\d.]+), .* epochs to come$", calm[1], re.MULTILINE)
    assert shown == [("lib_code", "0.784"), ("lib_docs", "0.196"), ("lib_licenses", "0.02")]


@pytest.mark.slow
def test_threads_are_no_more_than_the_cores_that_there_are(calm: tuple[Path, str]) -> None:
    assert "\ndevice: 1 x CPU, 1 threads," in calm[1]


@pytest.mark.slow
def test_the_best_checkpoint_has_the_lowest_loss_of_the_first_source(calm: tuple[Path, str]) -> None:
    losses = {row["step"]: row["val_loss"] for row in metrics(calm[0]) if row["kind"] == "eval@lib_code"}
    assert final_state(calm[0], "best.pt")["/itr"] == min(losses, key=losses.__getitem__)


@pytest.mark.slow
@pytest.mark.parametrize(
    "dataset", ["lib_docs = 0.5, lib_code = 0.5", "lib_docs"], ids=["mixture", "one source"]
)
def test_another_dataset_is_passed_on(clone: Path, data_dir: Path, tmp_path: Path, dataset: str) -> None:
    quoted = re.sub(r"([ ,])", r"\\\1", dataset)
    done = call(
        "bash",
        job(clone, "bytes-train"),
        "smoke",
        "--dry-run",
        **settings(tmp_path / "exps", data_dir),
        DATASET=dataset,
    )
    assert f"--dataset {quoted} " in done.stdout, done.stderr


def test_an_unknown_preset_is_refused_with_those_that_there_are(clone: Path) -> None:
    done = call("bash", job(clone, "bytes-train"), "small")
    assert is_one_line(done) and "smoke (1,000 steps) or train (20,000)" in done.stderr
