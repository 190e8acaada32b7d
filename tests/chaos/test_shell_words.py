"""Words that a shell would run, as names, settings and options: they stay words, or are refused."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import data.inspect
import data.tokenize
import main as training
from tests.chaos import scale
from tests.chaos.attacks import MARK, QUICK, SMALL, WORDS, job, landed, one_line, works_or_is_refused
from tests.programs import PEER, ROOT, environment, flags

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("nothing_left")]
RUNS = ("substitution", "backquotes", "semicolon", "pipe", "and", "line")


@pytest.mark.parametrize("kind", RUNS)
def test_the_hostile_words_run_where_a_shell_reads_them(tmp_path: Path, kind: str) -> None:
    subprocess.run(
        ["bash", "-c", f"echo {WORDS[kind]}"], cwd=tmp_path, check=False, capture_output=True, timeout=20
    )
    assert (tmp_path / MARK).exists()


def test_a_hostile_index_runs_where_bash_calculates(tmp_path: Path) -> None:
    environ = {**os.environ, "NUMBER": WORDS["index"]}
    subprocess.run(
        ["bash", "-c", "((NUMBER))"], cwd=tmp_path, env=environ, check=False, capture_output=True, timeout=20
    )
    assert (tmp_path / MARK).exists()


@pytest.mark.parametrize("kind", scale(["substitution", "quote", "line", "dash"], list(WORDS)))
@pytest.mark.parametrize(
    "flag", ["exp_name", "run_prefix", "results_base_folder", "dataset", "stop_file", "wandb_project"]
)
def test_hostile_words_to_the_training_are_names_or_refused(
    tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch, flag: str, kind: str
) -> None:
    word = WORDS[kind]
    monkeypatch.chdir(tmp_path)
    if flag == "dataset" and "\n" not in word:
        shutil.copytree(PEER / "datasets" / "openwebtext2", tmp_path / "data" / word)
    changes = {
        "results_base_folder": None,
        "data_dir": tmp_path / "data" if flag == "dataset" else PEER / "datasets",
        "exp_name": None if flag == "run_prefix" else "run",
        flag: None,
    }
    given = [f"--{flag}={word}"] + (
        [] if flag == "results_base_folder" else ["--results_base_folder", str(tmp_path / "results")]
    )
    works_or_is_refused(call(training.main, *flags(tmp_path, **changes, **QUICK), *given))
    assert not (tmp_path / MARK).exists()


@pytest.mark.parametrize("kind", scale(["substitution", "quote", "line", "dash"], list(WORDS)))
@pytest.mark.parametrize("flag", ["name", "input", "data_dir", "text-key"])
def test_hostile_words_to_the_tokeniser_are_names_or_refused(
    tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch, flag: str, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("good.txt").write_text("some text\n" * 20)
    Path(WORDS[kind]).write_text("some text\n" * 20)
    settings = {
        "name": "mine",
        "input": "good.txt",
        "data_dir": "data",
        "text-key": "text",
        "tokenizer": "char",
        flag: WORDS[kind],
    }
    works_or_is_refused(
        call(data.tokenize.main, *(f"--{name}={value}" for name, value in settings.items())), WORDS[kind]
    )
    assert not (tmp_path / MARK).exists()


@pytest.mark.parametrize("setting", scale(["N_GPUS", "CPUS"], ["N_GPUS", "N_NODES", "CPUS"]))
@pytest.mark.parametrize("kind", scale(["index", "substitution"], list(WORDS)))
def test_a_number_of_a_job_that_is_none_is_refused_before_bash_calculates(
    tmp_path: Path, setting: str, kind: str
) -> None:
    assert setting in one_line(
        job(
            "base-train",
            "base",
            "12",
            "--local",
            "--dry-run",
            SCRATCH_DIR=str(tmp_path),
            **{setting: WORDS[kind]},
        )
    )
    assert not landed()


SETTINGS = (
    "DATASET",
    "DATA_DIR",
    "RESULTS_DIR",
    "SCRATCH_DIR",
    "TEAM_DIR",
    "TIKTOKEN_CACHE_DIR",
    "HF_HOME",
    "WANDB_DIR",
    "WANDB_MODE",
    "WANDB_PROJECT",
    "GPU_PARTITION",
    "PARTITION",
    "TIME_LIMIT",
    "MEMORY",
    "SBATCH_OPTIONS",
    "CHAIN_BY",
    "HEALTH_CHECK",
    "NOTIFY_EMAIL",
    "ITERATIONS",
    "BATCH_SIZE",
    "USE_CONDA",
)


@pytest.mark.parametrize(
    ("setting", "kind"),
    scale(
        [("TEAM_DIR", "two quotes")],
        [
            (setting, kind)
            for number, setting in enumerate(SETTINGS)
            for kind in [*RUNS, "index", "dash", "glob"][number % 9 :: 9]
        ],
    ),
)
def test_hostile_settings_of_a_job_run_nothing(
    tmp_path: Path, quick_venv: Path, setting: str, kind: str
) -> None:
    works_or_is_refused(
        job(
            "base-train",
            "base",
            "12",
            "--local",
            "--dry-run",
            "--",
            *SMALL,
            **{"VENV_DIR": str(quick_venv), "SCRATCH_DIR": str(tmp_path), setting: WORDS[kind]},
        )
    )


@pytest.mark.parametrize(
    ("package", "option"),
    scale(
        [("eval-lncot", "--checkpoint")],
        [("base-train", option) for option in ("--name", "--after", "--chain", "MODEL", "--")]
        + [
            ("eval-lncot", "--checkpoint"),
            ("eval-lncot", "--name"),
            ("extract-tokenize-dataset", "--input"),
            ("download-dataset", "--source"),
        ],
    ),
)
@pytest.mark.parametrize("kind", scale(["substitution"], ["substitution", "quote", "line"]))
def test_hostile_options_of_a_job_run_nothing(
    tmp_path: Path, quick_venv: Path, package: str, option: str, kind: str
) -> None:
    words = {
        "MODEL": [WORDS[kind], "12"],
        "--": ["base", "12", "--", *SMALL, f"--exp_name={WORDS[kind]}"],
    }.get(option)
    if words is None:
        model = ["base", "12"] if package == "base-train" else []
        words = [*model, option, WORDS[kind], *(["--", *SMALL] if model else [])]
    env = {"VENV_DIR": str(quick_venv), "SCRATCH_DIR": str(tmp_path)}
    works_or_is_refused(job(package, "--local", "--dry-run", *words, **env))


@pytest.mark.parametrize("kind", WORDS)
def test_the_script_for_slurm_gives_hostile_words_back_as_they_were(tmp_path: Path, kind: str) -> None:
    word = WORDS[kind]
    script = (
        'source iridis/lib.sh; JOB_SCRIPT="$1/print"; RUN_DIR="$2" MAX_JOBS="" NAME="$2" CHECKPOINTS=("$2")'
        ' WORDS=("$2") FLAGS=("$2");segment_words; printf "#!/usr/bin/env bash\\nexec %s\\n" "$(quoted'
        ' "${SEGMENT[@]}")" >"$1/script"; bash "$1/script"'
    )
    (tmp_path / "print").write_text("printf '%s\\0' \"$@\"\n")
    outcome = subprocess.run(
        ["bash", "-c", script, "bash", str(tmp_path), word],
        cwd=ROOT,
        env=environment(SCRATCH_DIR=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert outcome.stdout.split("\0") == [
        "--segment",
        word,
        "--name",
        word,
        "--checkpoint",
        word,
        word,
        "--",
        word,
        "",
    ], outcome.stderr
    assert not landed()
