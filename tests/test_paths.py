"""Flags that name files, which a pinned job is given in full."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from config.recipe import recipes
from iridis.paths import whole
from tests.programs import ROOT

OF_FILES = re.compile(r"\b(file|folder|checkpoint of|weights of a checkpoint)\b")


@pytest.mark.parametrize("recipe", recipes().values(), ids=lambda recipe: recipe.name)
def test_a_flag_whose_help_speaks_of_a_file_names_one(recipe):
    texts = [flag for flag in recipe.flags.values() if flag.type is str and not flag.choices]
    assert {flag.name for flag in texts if OF_FILES.search(flag.help) and not flag.names} <= {"exp_name"}


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("--reference here", "--reference {}/here"),
        ("--teacher=here", "--teacher={}/here"),
        ("--resume ./here", "--resume {}/here"),
        ("--dataset-path here --log-dir new", "--dataset-path {}/here --log-dir {}/new"),
        ("--tokenizer here --resume-adapter here", "--tokenizer {0}/here --resume-adapter {0}/here"),
        ("--init_from name --dataset stdlib", "--init_from name --dataset stdlib"),
        ("--data_dir None --use_pretrained none", "--data_dir None --use_pretrained none"),
        ("--core_data= --n_layer here", "--core_data= --n_layer here"),
        ("--config new/../x.json", "--config {}/x.json"),
        ("--input here new --text-key here", "--input {0}/here {0}/new --text-key here"),
        ("--source here --bitmask here", "--source {0}/here --bitmask {0}/here"),
        ("--source https://a.b/c --base-dir here", "--source https://a.b/c --base-dir {}/here"),
    ],
)
def test_paths_are_named_in_full(tmp_path, monkeypatch, words, wanted):
    (tmp_path / "here").touch()
    monkeypatch.chdir(tmp_path)
    assert whole(words.split(" ")) == wanted.replace("{}", "{0}").format(tmp_path).split(" ")


def test_job_scripts_name_them_in_full_and_leave_other_words_as_they_are() -> None:
    script = 'source iridis/lib.sh; FLAGS=("$@"); whole_paths; printf "%s|" "${FLAGS[@]}"'
    words = ["--reference", "docs", "--eval_seq_prefix", "two\nlines  and * spaces "]
    done = subprocess.run(
        [str(shutil.which("bash")), "-c", script, "bash", *words],
        cwd=ROOT,
        env={**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"--reference|{ROOT}/docs|--eval_seq_prefix|two\nlines  and * spaces |"
