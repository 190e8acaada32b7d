"""The job of the modern GPT, run as users run it, without SLURM."""

from __future__ import annotations

from pathlib import Path

import pytest

from files import load_json
from tests.corpora import write_sources
from tests.job_calls import call, is_one_line, job

pytestmark = pytest.mark.usefixtures("no_slurm")


def places(tmp_path: Path) -> dict[str, str]:
    data_dir = tmp_path / "datasets"
    data_dir.mkdir()
    write_sources(data_dir, {"lib_docs": 4000, "owt2": 4000}, tokenizer="bytes")
    folders = {"RESULTS_DIR": tmp_path / "exps", "DATA_DIR": data_dir, "SCRATCH_DIR": tmp_path}
    return {name: str(folder) for name, folder in folders.items()}


@pytest.mark.slow
def test_the_word_is_the_depth(clone: Path, tmp_path: Path) -> None:
    settings = {**places(tmp_path), "DATASET": "lib_docs", "DEVICE_BATCH_SIZE": "16", "PACKING": "none"}
    words = ["--dry-run", "--", "--vocab_size", "256", "--device", "cpu"]
    done = call("bash", job(clone, "gpt-train"), "d20", *words, **settings)
    assert "main.py gpt --packing none --depth 20 --dataset lib_docs --batch_size 16 " in done.stdout


@pytest.mark.slow
def test_bytes_cannot_be_packed_and_are_not_queued(clone: Path, tmp_path: Path) -> None:
    settings = {**places(tmp_path), "DATASET": "lib_docs"}
    words = ["--dry-run", "--", "--vocab_size", "256", "--device", "cpu"]
    done = call("bash", job(clone, "gpt-train"), "d20", *words, **settings)
    assert done.returncode == 2 and "--packing best_fit needs documents that end with a token" in done.stderr


@pytest.mark.slow
def test_a_small_one_trains_on_a_cpu(clone: Path, tmp_path: Path) -> None:
    words = ["cpu", "--local", "--", "--max-seq-len", "32", "--eval-tokens", "32", "--total-batch-size", "32"]
    sizes = ["--depth", "2", "--aspect-ratio", "16", "--head-dim", "16", "--device", "cpu"]
    done = call("bash", job(clone, "gpt-train"), *words, *sizes, **places(tmp_path), ITERATIONS="3")
    assert done.returncode == 0, done.stdout + done.stderr
    assert load_json(tmp_path / "exps" / "lib_docs" / "base" / "d2" / "summary.json")["itr"] == 3


def test_an_unknown_size_is_refused_with_those_that_there_are(clone: Path) -> None:
    done = call("bash", job(clone, "gpt-train"), "d13")
    assert is_one_line(done) and "d12, d20, d26 or cpu" in done.stderr
