"""outcome.json: every way in which a run ends is told there by main.py itself, whoever of its processes
met it.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import config
from data.order import SampleOrder
from errors import BadNumbers, Replaced, UserError
from iridis.chain import Cause, judge
from optim import initial
from optim.lock import Lock
from optim.outcome import CODES, Ending, Kind, Outcome, ended, of_error, of_exit_code, read_outcome
from tests.programs import PEER, STOPPED, TINY, command, folder, run, start, status, train, wait_for_step

SHORT = {"iterations": 4, "eval_freq": 0, "log_freq": 1}


def told(results: Path) -> dict[str, Any]:
    return json.loads((folder(results) / "outcome.json").read_text())


def kind_and_code(results: Path) -> tuple[str, int]:
    return told(results)["kind"], told(results)["code"]


# what an error makes of a run


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        (UserError("x"), "refused", 2),
        (BadNumbers("x"), "bad numbers", 2),
        (Replaced("x"), "replaced", 2),
        (IndexError("x"), "crashed", 1),
        (MemoryError(), "out of memory", 1),
        (torch.OutOfMemoryError("CUDA out of memory"), "out of memory", 1),
        (OSError(errno.ENOSPC, "No space left on device"), "refused", 2),
        (OSError(errno.ESTALE, "Stale file handle", "/x"), "crashed", 1),
        (ModuleNotFoundError("x", name="torch"), "refused", 2),
        (KeyboardInterrupt(), "stopped", 130),
    ],
)
def test_each_error_has_its_kind_and_exit_code(error: BaseException, kind: str, code: int) -> None:
    outcome = of_error(error)
    assert (outcome.kind, outcome.code) == (kind, code)


def test_the_allocator_of_cpus_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(1 << 60, dtype=torch.uint8)
    assert of_error(caught.value).kind == Kind.OUT_OF_MEMORY


@pytest.mark.parametrize(
    ("code", "kind", "reason"),
    [
        (137, "crashed", "killed, signal 9"),
        (139, "crashed", "killed, signal 11"),
        (2, "refused", "exit code 2"),
        (1, "crashed", "exit code 1"),
    ],
)
def test_an_exit_code_alone_tells_what_it_can(code: int, kind: str, reason: str) -> None:
    outcome = of_exit_code(code)
    assert outcome.kind == kind and outcome.reason.startswith(reason)


@pytest.mark.parametrize("kind", list(Kind))
def test_an_outcome_is_read_as_it_was_written(tmp_path: Path, kind: Kind) -> None:
    (tmp_path / "outcome.json").write_text(json.dumps(ended(kind, "why", 7, by_hand=True).as_json()))
    assert read_outcome(tmp_path / "outcome.json") == Outcome(kind, "why", 7, CODES[kind], True)


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "null", '{"kind": "unheard of"}', '{"kind": ["finished"]}', '{"code": 0}', "[" * 100_000],
)
def test_a_file_that_is_no_outcome_is_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "outcome.json").write_text(content)
    assert read_outcome(tmp_path / "outcome.json") is None


# who writes it


def test_the_first_process_that_fails_is_believed(tmp_path: Path) -> None:
    first, second = Ending(tmp_path, None), Ending(tmp_path, None)
    first.held = second.held = True
    first.record(ended(Kind.CRASHED, "IndexError: the cause"))
    second.record(ended(Kind.CRASHED, "RuntimeError: connection closed by peer"))
    assert json.loads((tmp_path / "outcome.json").read_text())["reason"] == "IndexError: the cause"


def test_a_reason_names_flags_as_the_command_line_does(tmp_path: Path) -> None:
    worded = config.as_written(["coalescence", "--checkpoint", "a.pt"])
    with pytest.raises(UserError):
        Ending(tmp_path, None, worded).recorded(lambda: initial.find("a.pt"))
    assert json.loads((tmp_path / "outcome.json").read_text())["reason"].startswith("--checkpoint a.pt: no")


def test_nothing_is_written_into_an_experiment_that_another_run_has(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "lock")
    try:
        Ending(tmp_path, tmp_path / "copy.json").record(ended(Kind.REFUSED, "is being trained by another"))
    finally:
        lock.release()
    assert not (tmp_path / "outcome.json").exists() and (tmp_path / "copy.json").exists()


def test_nothing_is_written_into_an_experiment_that_was_lost(tmp_path: Path) -> None:
    lock = Lock(tmp_path / "lock")
    ending = Ending(tmp_path, None)
    ending.take(lock)
    ending.held = True
    (tmp_path / "lock").write_text('{"job": "8", "host": "elsewhere", "pid": 1, "token": "another"}\n')
    ending.record(ended(Kind.CRASHED, "RuntimeError: connection closed by peer"))
    lock.release()
    assert not (tmp_path / "outcome.json").exists()


# real runs


@pytest.mark.slow
def test_a_finished_run_says_so(tmp_path: Path) -> None:
    assert train(tmp_path, **SHORT).returncode == 0
    assert told(tmp_path) == {
        "code": 0,
        "kind": "finished",
        "reason": "all iterations done",
        "step": 4,
        "by_hand": False,
    }
    assert train(tmp_path, **SHORT).returncode == 0
    assert told(tmp_path) == {
        "code": 0,
        "kind": "finished",
        "reason": "finished already",
        "step": 4,
        "by_hand": False,
    }


@pytest.mark.slow
@pytest.mark.parametrize(("number", "by_hand"), [(signal.SIGUSR1, False), (signal.SIGINT, True)])
def test_a_signal_stops_a_run_and_says_whose_it_was(
    tmp_path: Path, number: signal.Signals, by_hand: bool
) -> None:
    process = start(command(tmp_path, log_freq=1))
    wait_for_step(tmp_path, 3, process)
    process.send_signal(number)
    process.communicate(timeout=60)
    assert told(tmp_path) == {
        "code": 83,
        "kind": "stopped",
        "reason": number.name,
        "step": status(tmp_path)["itr"],
        "by_hand": by_hand,
    }


@pytest.mark.slow
@pytest.mark.essential
def test_a_clean_stop_under_torchrun_has_the_code_that_torchrun_cannot_give(tmp_path: Path) -> None:
    outcome = train(tmp_path, 2, iterations=100_000, max_runtime_minutes=0)
    assert outcome.returncode == 0, outcome.stderr
    assert kind_and_code(tmp_path) == ("stopped", STOPPED)


@pytest.mark.slow
def test_numbers_that_are_not_finite_are_told_as_such(tmp_path: Path) -> None:
    assert train(tmp_path, opt="sgd", lr=1e30, warmup_percent=0, log_freq=0, eval_freq=0).returncode == 2
    assert kind_and_code(tmp_path) == ("bad numbers", 2) and told(tmp_path)["reason"].startswith("step ")


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [{"vocab_size": 100}, {"dataset": "missing"}, {"device": "cuda:7"}, {"use_pretrained": "ckpt_5.pt"}],
    ids=str,
)
def test_what_is_refused_before_the_first_step_is_told(tmp_path: Path, changes: dict[str, Any]) -> None:
    """In the copy, whose folder is made: the experiment may have none yet."""
    copy = tmp_path / "jobs" / "copy.json"
    outcome = train(tmp_path, outcome_file=copy, **changes)
    assert outcome.returncode == 2
    written = json.loads(copy.read_text())
    assert (written["kind"], written["code"]) == ("refused", 2)
    assert f"main.py: error: {written['reason']}\n" in outcome.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_a_checkpoint_fills_has_room_for_the_outcome_and_the_status(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(disk)], check=True)
    try:
        assert train(disk, **SHORT, n_embd=64).returncode == 2
        assert told(disk)["kind"] == "refused" and "No space left on device" in told(disk)["reason"]
        assert status(disk)["state"] == "failed"
    finally:
        subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.slow
def test_an_outcome_of_an_earlier_run_does_not_outlive_a_kill(tmp_path: Path) -> None:
    assert train(tmp_path, iterations=100_000, max_runtime_minutes=0).returncode == STOPPED
    process = start(command(tmp_path, iterations=100_000, log_freq=1))
    wait_for_step(tmp_path, 3, process)
    process.kill()
    process.communicate()
    assert not (folder(tmp_path) / "outcome.json").exists()


@pytest.mark.slow
def test_what_one_process_alone_met_is_told_and_not_the_loss_of_its_connection(tmp_path: Path) -> None:
    """A token beyond the vocabulary stands where only the second process reads in the first step."""
    data = Path(shutil.copytree(PEER / "datasets", tmp_path / "datasets"))
    bin_file = data / "openwebtext2" / "train.bin"
    tokens = np.fromfile(bin_file, dtype="<u2")
    length = TINY["sequence_length"]
    (window,) = SampleOrder((tokens.size - 1) // length, data_seed=2).windows(TINY["batch_size"], 1)
    tokens[window * length + 5] = 60000
    tokens.tofile(bin_file)
    sizes = {
        split: {"tokens": (bin_file.parent / f"{split}.bin").stat().st_size // 2, "largest_token": 255}
        for split in ("train", "val")
    }
    (bin_file.parent / "meta.json").write_text(json.dumps({"splits": sizes}))
    assert train(tmp_path / "results", 2, data_dir=data, **SHORT).returncode != 0
    assert (
        told(tmp_path / "results")["kind"] == "refused"
        and "token 60000" in told(tmp_path / "results")["reason"]
    )
    assert "token 60000" in status(tmp_path / "results")["reason"]


@pytest.mark.slow
def test_a_crash_is_told_with_its_exception(tmp_path: Path) -> None:
    words = [
        "-c",
        (
            "import sys, main; from data.order import SampleOrder\n"
            "def broken(self, first, count): raise IndexError('a bug')\n"
            "SampleOrder.windows = broken; sys.exit(main.main(sys.argv[1:]))"
        ),
    ]
    line = command(tmp_path, **SHORT)
    outcome = run([line[0], *words, *line[2:]])
    assert outcome.returncode == 1
    assert told(tmp_path) == {
        "code": 1,
        "kind": "crashed",
        "reason": "IndexError: a bug",
        "step": 0,
        "by_hand": False,
    }


@pytest.mark.slow
def test_the_chain_takes_the_outcome_of_a_real_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "outcome_7.0.json"
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert (
        run(
            command(tmp_path, iterations=100_000, max_runtime_minutes=0, outcome_file=copy), SLURM_JOB_ID="7"
        ).returncode
        == STOPPED
    )
    assert judge(folder(tmp_path), STOPPED, Cause.NONE, read_outcome(copy)) == (
        "again",
        "max_runtime_minutes",
    )
