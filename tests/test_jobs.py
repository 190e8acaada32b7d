"""The job scripts, run as users run them, on a machine without SLURM."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path

import pytest
import torch

from data.built_in import stdlib_documents
from tests.corpora import lines, prepare
from tests.programs import ROOT, copy_sources
from tests.summaries import evaluation, weights

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def python_of_jobs(quick_venv: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VENV_DIR", str(quick_venv))


def bash(script: str, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [str(shutil.which("bash")), "-c", script],
        cwd=ROOT,
        env={**os.environ, **env},
        capture_output=True,
        text=True,
        check=False,
        timeout=1500,
    )


def test_quickstart_trains_stops_resumes_evaluates_and_prints_its_table(
    tmp_path: Path, bpe_cache: Path
) -> None:
    """On a small part of its data: it evaluates all of the validation split four times."""
    (tmp_path / "part.jsonl").write_bytes(lines(text for _, text in islice(stdlib_documents(), 40)))
    assert prepare(tmp_path / "datasets" / "stdlib", tmp_path / "part.jsonl", val_share=0.05) == 0
    outcome = bash(
        "bash iridis/quickstart/job.sh",
        SCRATCH_DIR=str(tmp_path),
        ITERATIONS="40",
        ADAPTIVE_ITERATIONS="10",
        SWEEP_TOKENS="1024",
        N_EMBD="32",
        BATCH_SIZE="2",
        SEQUENCE_LENGTH="64",
    )
    run_dir = Path(outcome.stdout.splitlines()[0].removeprefix("run folder: "))
    try:
        assert outcome.returncode == 0, outcome.stdout + outcome.stderr
        result = json.loads((run_dir / "quickstart.json").read_text())
        (begin, half, reason), (resumed, end, _) = result["segments"]
        assert (begin, reason, half, end) == (0, "SIGUSR1", resumed, 40)
        assert f"{result['unigram_perplexity']:.2f}" in outcome.stdout
        assert (run_dir / "command.txt").is_file() and (run_dir / "revision.txt").is_file()
    finally:
        shutil.rmtree(run_dir)


def test_a_dry_run_without_slurm_makes_nothing(tmp_path: Path) -> None:
    before = sorted((ROOT / "iridis" / "quickstart").iterdir())
    outcome = bash("bash iridis/quickstart/job.sh --dry-run", SCRATCH_DIR=str(tmp_path / "scratch"))
    programs = re.findall(r"^python (?:-m )?(\S+)", outcome.stdout, re.MULTILINE)
    assert programs == ["main.py"] * 3 + ["eval.py"] * 2 + [
        "get_ppl_per_mac.py",
        "get_router_weights.py",
        "plot_fig4.py",
        "plot_fig5.py",
        "report",
        "iridis.quickstart.table",
    ], outcome.stderr
    assert (
        sorted((ROOT / "iridis" / "quickstart").iterdir()) == before and not (tmp_path / "scratch").exists()
    )


def test_twenty_run_folders_at_once_are_twenty_folders(tmp_path: Path) -> None:
    with ThreadPoolExecutor(20) as pool:
        made = list(
            pool.map(
                lambda _: bash(f"source iridis/lib.sh; new_run_dir '{tmp_path}'").stdout.strip(), range(20)
            )
        )
    assert sorted(made) == sorted(str(tmp_path / f"run_{n}") for n in range(20))


def test_recorded_command_survives_quotes_and_spaces(tmp_path: Path) -> None:
    words = ["printf", "%s|", "a b", "it's", '"x"', "$HOME", "*"]
    quoted = " ".join("'" + word.replace("'", "'\\''") + "'" for word in words)
    assert bash(f"source iridis/lib.sh; record_run '{tmp_path}' {quoted}").returncode == 0
    assert bash(f". {tmp_path}/command.txt").stdout == "".join(f"{word}|" for word in words[2:])


def test_paths_can_be_set_in_the_environment(tmp_path: Path) -> None:
    shown = bash(
        'source iridis/env.sh; echo "$DATA_DIR $RESULTS_DIR"',
        SCRATCH_DIR=str(tmp_path),
        RESULTS_DIR="/elsewhere",
    ).stdout
    assert shown.split() == [f"{tmp_path}/datasets", "/elsewhere"]


def test_an_interpreter_that_is_too_old_is_refused(tmp_path: Path) -> None:
    old = tmp_path / "python3"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    for tool in ("dirname", "basename", "readlink", "realpath", "stat", "date", "sha256sum"):
        (tmp_path / tool).symlink_to(str(shutil.which(tool)))
    outcome = bash("source iridis/lib.sh; find_python", PYTHON=str(old), PATH=str(tmp_path))
    assert outcome.returncode == 2
    assert "no Python 3.11 or newer found" in outcome.stderr


@pytest.mark.parametrize("tool", ["realpath", "stat", "date", "sha256sum"])
def test_tools_that_are_not_those_of_linux_are_refused_in_one_line(tool: str, tmp_path: Path) -> None:
    other = tmp_path / tool
    other.write_text("#!/bin/sh\necho illegal option >&2; exit 1\n")
    other.chmod(0o755)
    outcome = bash(
        "bash iridis/quickstart/job.sh --local --dry-run",
        PATH=f"{tmp_path}:{os.environ['PATH']}",
    )
    assert (outcome.returncode, outcome.stdout, len(outcome.stderr.splitlines())) == (2, "", 1)
    assert (
        "the job scripts are for Linux" in outcome.stderr and "brew install bash coreutils" in outcome.stderr
    )


# code of the site and of the user, in the job's own shell


def with_module(
    code: str, job: str = "bash iridis/quickstart/job.sh --local --dry-run", **env: str
) -> subprocess.CompletedProcess[str]:
    """A job where the site's `module` is this code, as an exported shell function."""
    return bash(f"module() {{ {code}; }}; export -f module; {job}", **env)


@pytest.mark.parametrize(
    "code",
    [
        "[[ -z $LMOD_QUIET ]]; return 1",
        "set -eu; false; return 1",
        "shopt -s nullglob; IFS=/; return 1",
        "trap - EXIT ERR; return 1",
    ],
)
def test_shell_code_of_the_site_is_not_held_to_the_options_of_the_job(code: str, tmp_path: Path) -> None:
    outcome = with_module(code, SCRATCH_DIR=str(tmp_path))
    assert (outcome.returncode, outcome.stdout.splitlines()[0], outcome.stderr) == (
        0,
        "would run here, in processes: 1",
        "",
    )


def test_shell_code_of_the_site_that_ends_the_script_is_named(tmp_path: Path) -> None:
    outcome = with_module("exit 7", SCRATCH_DIR=str(tmp_path))
    assert outcome.returncode == 7
    assert outcome.stderr == "error: iridis/quickstart/job.sh ended with code 7, in `module load conda`\n"


@pytest.mark.parametrize(
    ("silenced", "code"),
    [("quiet() { echo $NOT_SET; }", 1), ("quiet() { false; }", 1), ("quiet() { exit 5; }", 5)],
)
def test_no_script_ends_in_silence(silenced: str, code: int) -> None:
    outcome = subprocess.run(
        ["bash", "-s"],
        input=f"source iridis/lib.sh\n{silenced}\nquiet >/dev/null 2>&1\n",
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert outcome.returncode == code
    assert f"ended with code {code}" in outcome.stderr


def test_a_script_says_once_that_a_command_failed() -> None:
    outcome = bash("source iridis/lib.sh; false")
    assert (outcome.returncode, len(outcome.stderr.splitlines())) == (1, 1)


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone whose run folders are this test's own."""
    copy_sources(tmp_path / "clone")
    return tmp_path / "clone"


@pytest.fixture
def experiments(tmp_path: Path) -> list[Path]:
    """Two trainings that finished an hour ago."""
    folders = [tmp_path / "exps" / name for name in ("first one", "second")]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "summary.json").write_text('{"args": {"iterations": 9}}')
        os.utime(folder / "summary.json", (time.time() - 3600,) * 2)
    return folders


def job(clone: Path, *words: str | Path, package: str = "eval-lncot") -> subprocess.CompletedProcess[str]:
    """`bash iridis/PACKAGE/job.sh WORDS...` in a clone, with an eval.py that only says its arguments."""
    (clone / "eval.py").write_text("import sys\nprint(sys.argv[1:])\n")
    return subprocess.run(
        ["bash", str(clone / "iridis" / package / "job.sh"), *map(str, words)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "USE_CONDA": "no", "SCRATCH_DIR": str(clone / "scratch")},
        timeout=100,
    )


def state(clone: Path, *words: str | Path) -> str:
    answer = job(clone, "--state", *words)
    assert answer.returncode == 0, answer.stderr
    return answer.stdout.strip()


def evaluated(clone: Path, *words: str | Path) -> Path:
    """The run folder of an evaluation that ran to its end."""
    done = job(clone, "--local", *words)
    run_dir = Path(done.stdout.splitlines()[0].removeprefix("run folder: "))
    assert (run_dir / "checkpoints.txt").is_file(), done.stderr
    (run_dir / "done").touch()  # the report found nothing to draw
    return run_dir


def old_run(clone: Path, checkpoints: list[Path], *words: str | Path) -> None:
    """A run folder as it was before there was a stage.txt."""
    run_dir = clone / "iridis" / "eval-lncot" / "run_0"
    run_dir.mkdir()
    script = 'printf "%q " "$@"'
    command = subprocess.run(
        ["bash", "-c", script, "bash", "bash", "/old/it's here/job.sh", *map(str, words)],
        capture_output=True,
        text=True,
    )
    (run_dir / "command.txt").write_text(command.stdout + "\n")
    (run_dir / "checkpoints.txt").write_text("".join(f"{path}\n" for path in checkpoints))
    (run_dir / "done").touch()


def test_an_evaluation_is_done_once_its_command_has_run(clone: Path, experiments: list[Path]) -> None:
    words = ("--checkpoint", experiments[0], "--", "--eval_sample_size", "16", "--note", 'it\'s a "note"\n*')
    assert state(clone, *words) == "todo"
    evaluated(clone, *words)
    assert state(clone, *words) == "done"


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--eval_sample_size", "32"],
        ["--eval_sample_size", "16", "--routing", "threshold"],
        ["--eval_sample_size 16"],
    ],
)
def test_an_evaluation_with_other_flags_is_not_done(
    clone: Path, experiments: list[Path], flags: list[str]
) -> None:
    evaluated(clone, "--checkpoint", experiments[0], "--", "--eval_sample_size", "16")
    assert state(clone, "--checkpoint", experiments[0], "--", *flags) == "todo"


def test_all_checkpoints_of_an_evaluation_are_compared(clone: Path, experiments: list[Path]) -> None:
    first, second = experiments
    evaluated(clone, "--checkpoint", first, "--checkpoint", second)
    assert state(clone, "--checkpoint", first, "--checkpoint", second) == "done"
    assert state(clone, "--checkpoint", first) == "todo"
    assert state(clone, "--checkpoint", first, "--checkpoint", first) == "todo"


def test_an_evaluation_is_done_anew_after_any_of_its_checkpoints(
    clone: Path, experiments: list[Path]
) -> None:
    words = ("--checkpoint", experiments[0], "--checkpoint", experiments[1])
    evaluated(clone, *words)
    later = time.time() + 5
    os.utime(experiments[1] / "summary.json", (later, later))
    assert state(clone, *words) == "todo"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [(["--eval_sample_size", "16"], "done"), (["--eval_sample_size", "8"], "todo"), ([], "todo")],
)
def test_a_run_from_before_stages_were_recorded_is_judged_by_its_command(
    clone: Path, experiments: list[Path], flags: list[str], expected: str
) -> None:
    old_run(clone, experiments[:1], "--after", "17", "--name", "any", "--", "--eval_sample_size", "16")
    assert state(clone, "--checkpoint", experiments[0], "--", *flags) == expected


def test_an_old_run_whose_command_cannot_be_compared_is_not_done(
    clone: Path, experiments: list[Path]
) -> None:
    words = ("--checkpoint", str(experiments[0]), "--", "--note", "$(touch here)\n")
    old_run(clone, experiments[:1], *words)
    assert state(clone, *words) == "todo"


def test_labels_and_steps_make_another_evaluation(clone: Path, experiments: list[Path]) -> None:
    torch.save({"itr": 9}, experiments[0] / "ckpt_9.pt")
    words = ("--checkpoint", f"v1={experiments[0]}", "--steps", "9")
    evaluated(clone, *words)
    assert state(clone, *words) == "done"
    assert [state(clone, *words[:2]), state(clone, "--checkpoint", experiments[0], *words[2:])] == [
        "todo",
        "todo",
    ]


@pytest.mark.parametrize("several", [False, True])
def test_a_run_from_before_there_were_labels_is_drawn_again(
    clone: Path, tmp_path: Path, several: bool
) -> None:
    run_dir, workspace = (
        clone / "iridis" / "eval-adm" / "run_0",
        clone / "scratch" / "analysis_workspace" / "eval-adm" / "run_0",
    )
    for place in ("0", "1") if several else (".",):
        weights(workspace / place / "router_weights_raw.npz", [[0.5, 0.4]], "raw", itr=100)
        evaluation(run_dir / place, 27.0, model="adm")
    (run_dir / "checkpoints.txt").write_text("/gone/a\n/gone/b\n" if several else "/gone/a\n")
    (run_dir / "done").touch()
    done = job(clone, "--replot", package="eval-adm")
    assert done.returncode == 0, done.stderr
    (row,) = json.loads((run_dir / "fig5.json").read_text())["rows"]
    assert [one["label"] for one in row["files"]] == ["100 steps: a_run/ckpt_100.pt"] * (1 + several)


def test_settings_of_the_site_may_use_what_is_not_set(clone: Path) -> None:
    (clone / "iridis" / "site.sh").write_text(
        '[[ -n $NOT_SET ]] && export NOWHERE=1\nfalse\n: "${CPU_PARTITION:=ours}"\n'
    )
    outcome = job(clone, "--local", "--dry-run", package="quickstart")
    assert (outcome.returncode, outcome.stderr) == (0, "")


def test_settings_of_the_site_that_fail_are_named(clone: Path) -> None:
    (clone / "iridis" / "site.sh").write_text("if then\n")
    outcome = job(clone, "--local", "--dry-run", package="quickstart")
    assert outcome.returncode == 2
    assert (
        outcome.stderr.splitlines()[-1]
        == f"error: {clone}/iridis/site.sh: its last command failed with code 2"
    )
