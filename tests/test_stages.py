"""Graphs of jobs that run on this machine: order, several at a time, failures, interruptions, kills."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from errors import STOPPED
from iridis import graph
from iridis.graph import Call
from iridis.table import Stage
from processes import is_running
from tests.programs import ROOT, link_programs

pytest.importorskip("msprime")

# what a package's job.sh does, called with --local and its stage's word
PACKAGES = {
    "good": "echo it runs; exit 0",
    "slow": "sleep 1; exit 0",
    "bad": "echo it cannot >&2; exit 3",
    "stops": "exit 83",
    "bar": r"printf '10%%\r50%%\r100%%\nno end'",
    "leaves": "sleep 30 & exit 0",
    "waits": "trap 'exit 143' TERM; sleep 30 & wait",
}


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the packages note that they begin and end."""
    path = tmp_path / "log"
    for name, work in PACKAGES.items():
        (tmp_path / name).mkdir()
        text = f"note() {{ echo \"$1 $2\" >>{path}; }}\nnote begins $2\ntrap 'note ends $2' EXIT\n{work}\n"
        (tmp_path / name / "job.sh").write_text(text)
    monkeypatch.setattr(graph, "IRIDIS", tmp_path)
    return path


def stage(name: str, after: str = "", package: str = "good") -> Stage:
    return Stage(name, tuple(after.split()), package, (), (name,), "")


def run(*stages: Stage, at_once: int = 1, **known: str) -> tuple[dict[str, str], list[str]]:
    """The states of the stages at the end, and what is said of those that are not done."""
    states = {each.name: known.get(each.name, "new") for each in stages}
    problems = graph.run_here(stages, Call([], {}), states, at_once)
    return states, problems


def test_stages_run_each_after_those_that_it_waits_for(log: Path) -> None:
    states, problems = run(stage("c", "a b"), stage("b", "a"), stage("a"))
    assert (set(states.values()), problems) == ({"done"}, [])
    assert log.read_text() == "begins a\nends a\nbegins b\nends b\nbegins c\nends c\n"


def test_the_order_of_the_table_decides_between_stages_that_could_begin(log: Path) -> None:
    run(stage("z"), stage("a"), stage("m"))
    assert [line.split()[1] for line in log.read_text().splitlines()[::2]] == ["z", "a", "m"]


@pytest.mark.parametrize(("at_once", "together"), [(1, 1), (2, 2), (9, 4)])
def test_so_many_stages_run_at_a_time(log: Path, at_once: int, together: int) -> None:
    run(*(stage(name, package="slow") for name in "abcd"), at_once=at_once)
    most = running = 0
    for line in log.read_text().splitlines():
        running += 1 if line.startswith("begins") else -1
        most = max(most, running)
    assert most == together


def test_finished_stages_do_not_run(log: Path) -> None:
    states, _ = run(stage("a"), stage("b", "a"), a="done")
    assert states == {"a": "done", "b": "done"} and "begins a" not in log.read_text()


def test_after_a_failure_the_others_go_on_and_those_that_wait_for_it_are_named(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    states, problems = run(stage("late", "next"), stage("next", "a"), stage("a", package="bad"), stage("b"))
    assert states == {"a": "failed", "next": "blocked", "late": "blocked", "b": "done"}
    assert re.fullmatch("stage a ended with code 3 after [0-9]+ s, see above", problems[0])
    assert problems[1:] == [
        "stage next has not run: it waits for a (failed)",
        "stage late has not run: it waits for next (blocked)",
    ]
    assert "a: it cannot\n" in capsys.readouterr().out


def test_a_stage_that_stops_cleanly_is_told_to_go_on(log: Path) -> None:
    states, problems = run(stage("a", package="stops"))
    assert states == {"a": "stopped"}
    (line,) = problems
    assert re.fullmatch("stage a was stopped after [0-9]+ s; the same command goes on", line)


def test_what_waits_for_a_queued_job_does_not_run(log: Path) -> None:
    states, problems = run(stage("a"), stage("b", "a"), a="4711")
    assert states["b"] == "blocked" and problems == ["stage b has not run: it waits for a (4711)"]


def test_lines_are_shown_behind_the_stage_s_name(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(stage("a", package="bar"))
    assert "a: 100%\na: no end\n" in capsys.readouterr().out


def test_a_process_that_a_stage_leaves_behind_is_not_waited_for(log: Path) -> None:
    began = time.monotonic()
    states, _ = run(stage("a", package="leaves"))
    assert states == {"a": "done"} and time.monotonic() - began < 10


def test_stages_share_the_cores(log: Path, tmp_path: Path) -> None:
    (tmp_path / "good" / "job.sh").write_text(f'echo "$OMP_NUM_THREADS" >>{log}\n')
    before = os.environ.pop("OMP_NUM_THREADS", None)
    try:
        run(stage("a"), stage("b"), at_once=len(os.sched_getaffinity(0)))
    finally:
        if before is not None:
            os.environ["OMP_NUM_THREADS"] = before
    assert log.read_text().split() == ["1", "1"]


def test_nothing_outlives_a_graph_that_is_killed(tmp_path: Path) -> None:
    note = tmp_path / "below"
    job = f"sleep 100 & echo $! >{note}; wait"
    code = f"import os, iridis.stages, time; iridis.stages.start('a', ['bash', '-c', {job!r}], os.environ)"
    with subprocess.Popen([sys.executable, "-c", f"{code}; time.sleep(100)"], cwd=ROOT) as running:
        wait_until(lambda: note.exists() and note.read_text().strip() != "")
        running.kill()
    wait_until(lambda: not is_running(int(note.read_text())))


def wait_until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.02)


# the door


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return link_programs(tmp_path_factory.mktemp("programs") / "bin")


Door = Callable[..., subprocess.Popen[str]]
SIMULATE = "--scenario constant --num_samples 60 --n_individuals 3 --sequence_length 20000 --num_processes 1"
PREPARE = "--sequence_length 20000 --simplify_first_n_samples 6 --num_pairs 4 --num_workers 1"
TABLE = (
    f"sim\t-\tgenomes-simulate\tmine -- {SIMULATE}\n"
    f"set\tsim\tgenomes-preprocess\tmine mine_set -- {PREPARE}\n"
)
DONE = "stage   state  package\nsim     done   genomes-simulate\n└─ set  done   genomes-preprocess\n"


@pytest.fixture
def door(clone: Path, programs: Path, quick_venv: Path, tmp_path: Path) -> Door:
    """Starts the pipeline of two stages on a machine without SLURM, with results below a folder."""
    (tmp_path / "mine.tsv").write_text(TABLE)

    def start(folder: Path) -> subprocess.Popen[str]:
        env = {
            **os.environ,
            "PATH": str(programs),
            "VENV_DIR": str(quick_venv),
            "USE_CONDA": "no",
            "SCRATCH_DIR": str(folder),
        }
        bash = str(shutil.which("bash"))
        return subprocess.Popen(
            [bash, str(clone / "iridis" / "pipeline.sh"), str(tmp_path / "mine.tsv"), "--local"],
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    return start


def contents(folder: Path) -> dict[str, bytes]:
    """All that the two stages have made."""
    made = [path for path in (folder / "datasets").rglob("*") if path.is_file() and path.name[0] != "."]
    return {str(path.relative_to(folder)): path.read_bytes() for path in made}


@pytest.mark.slow
def test_a_graph_that_was_stopped_and_killed_ends_as_one_that_was_not(door: Door, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    out, err = door(whole).communicate(timeout=200)
    assert out.startswith(DONE.replace("done", "new ")) and out.endswith(DONE), (out, err)
    for signum, group in ((signal.SIGTERM, False), (signal.SIGKILL, True)):
        running = door(cut)
        before = len(list(cut.rglob("*.trees")))
        while running.poll() is None and len(list(cut.rglob("*.trees"))) < before + 3:
            time.sleep(0.01)
        if group:
            os.killpg(running.pid, signum)
        else:
            running.send_signal(signum)
        out, err = running.communicate(timeout=60)
        assert before + 3 <= len(list(cut.rglob("*.trees"))) < 60
        assert (signum, running.returncode) in ((signal.SIGTERM, STOPPED), (signal.SIGKILL, -9)), err
        if signum == signal.SIGTERM:
            assert "error: stage sim was stopped after" in err and "the same command goes on" in err
            assert "sim     stopped" in out and "└─ set  blocked" in out
    out, err = door(cut).communicate(timeout=200)
    assert out.endswith(DONE), (out, err)
    assert contents(cut) == contents(whole)
    assert door(cut).communicate(timeout=200)[0] == DONE  # nothing is left to run


@pytest.mark.slow
def test_a_job_whose_time_is_up_is_started_again_and_goes_on(
    programs: Path, quick_venv: Path, tmp_path: Path
) -> None:
    """In the place of SLURM: a program `scontrol` that notes what it is asked, and ends the job."""
    stubs, run_dir, made = tmp_path / "stubs", tmp_path / "run", tmp_path / "datasets/genomes/mine"
    stubs.mkdir()
    run_dir.mkdir()
    scontrol = stubs / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$*" >>{tmp_path}/asked\nkill -KILL $PPID\n')
    scontrol.chmod(0o755)
    job = {"JOB_ID": "7", "JOB_NODELIST": "here", "JOB_PARTITION": "cpu", "JOB_END_TIME": "9999999999"}
    env = {
        **os.environ,
        **{f"SLURM_{name}": value for name, value in job.items()},
        "PATH": f"{stubs}:{programs}",
        "VENV_DIR": str(quick_venv),
        "USE_CONDA": "no",
        "SCRATCH_DIR": str(tmp_path),
    }
    script = ROOT / "iridis" / "genomes-simulate" / "job.sh"
    command = [str(shutil.which("bash")), str(script), "--segment", str(run_dir), "mine", "--"]
    command += SIMULATE.split()
    with subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) as running:
        while running.poll() is None and len(list(made.glob("*.trees"))) < 3:
            time.sleep(0.01)
        running.send_signal(signal.SIGUSR1)
        assert running.wait(60) == -signal.SIGKILL
    assert (tmp_path / "asked").read_text() == "requeue 7\n"
    assert 3 <= len(list(made.glob("*.trees"))) < 60
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=100)
    assert (done.returncode, len(list(made.glob("*.trees")))) == (0, 60), done
    assert (run_dir / "done").exists()
