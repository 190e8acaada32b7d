"""Trainings on the tokens of each tokenizer: bits per byte, generated text, exports."""

from __future__ import annotations

import json
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import config
from data.bins import map_tokens, read_meta
from data.bpe import END_OF_TEXT, gpt2
from models import make_model_from_args
from optim.checkpoint import load_checkpoint
from tests.corpora import lines, prepare
from tests.programs import folder, metrics, run, train, trained
from tests.tokenizers_of_users import byte_level

pytestmark = pytest.mark.slow

NAMES = ["bytes", "char", "gpt2", "tokenizer.json"]
TEXT = "Shall I compare thee to a summer's day? Thou art more lovely — and more temperate. ☃\n"
SMALL = {
    "model": "base",
    "n_layer": 1,
    "n_embd": 16,
    "n_head": 2,
    "sequence_length": 16,
    "acc_steps": 1,
    "dropout": 0,
    "iterations": 4,
    "eval_freq": 2,
    "eval_batches": 0,
    "save_checkpoint_freq": None,
    "data_dir": None,
    "n_layer_begin": None,
    "n_layer_end": None,
    "n_repeat": None,
    "depth_embedding": None,
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus, a tokenizer of a user and what the tests make of both."""
    place = tmp_path_factory.mktemp("place")
    byte_level(place / "mine.json")
    (place / "raw.jsonl").write_bytes(lines([TEXT * 4] * 5))
    return place


@pytest.fixture(scope="module")
def made(place: Path) -> Any:
    """Of a tokenizer, the results of a training on its tokens, made once."""
    done: dict[str, Path] = {}

    def results_of(name: str) -> Path:
        if name not in done:
            given = place / "mine.json" if name == "tokenizer.json" else name
            assert prepare(place / name, place / "raw.jsonl", tokenizer=given, val_fraction=0.4) == 0
            size = {"gpt2": 50257, "tokenizer.json": 301}.get(name, 256)
            settings = {**SMALL, "dataset": place / name, "vocab_size": size, "track": "val_bpb"}
            done[name] = trained(place / "results" / name, **settings)
        return done[name]

    return results_of


def told(*words: Any) -> str:
    """What a program prints; it ends well."""
    outcome = run([sys.executable, *map(str, words)])
    assert outcome.returncode == 0, outcome.stderr
    return outcome.stdout


@pytest.mark.parametrize("name", NAMES)
def test_bits_per_byte_of_the_training_are_those_of_eval(made: Any, name: str, tmp_path: Path) -> None:
    results = made(name)
    told("eval.py", "--checkpoint", folder(results) / "ckpt.pt", "--output_dir", tmp_path)
    final = next(row for row in metrics(results) if row["kind"] == "final")
    summary = json.loads((tmp_path / "eval_summary_ckpt.json").read_text())
    assert final["val_bpb"] == summary["bits_per_byte"]


def test_bits_per_byte_of_bytes_are_the_loss_in_bits(made: Any) -> None:
    rows = [row for row in metrics(made("bytes")) if "val_bpb" in row]
    assert [row["kind"] for row in rows] == ["eval", "eval", "final"]
    assert [row["val_bpb"] for row in rows] == [row["val_loss"] / math.log(2) for row in rows]


def test_bits_per_byte_are_of_text_that_is_predicted(made: Any, place: Path) -> None:
    """Ends of documents are predicted, too, but are no text."""
    results = made("gpt2")
    final = next(row for row in metrics(results) if row["kind"] == "final")
    state = load_checkpoint(folder(results) / "ckpt.pt")
    network = make_model_from_args(config.add_defaults(config.recorded(state["args"])))
    network.load_state_dict(state["model"])
    tokens = torch.from_numpy(map_tokens(place / "gpt2" / "val.bin").astype("int64"))
    windows = tokens[: final["n_tokens"]].view(-1, 16), tokens[1 : final["n_tokens"] + 1].view(-1, 16)
    losses = network.eval()(windows[0], targets=windows[1])["token_losses"]
    is_text = windows[1] != END_OF_TEXT
    n_bytes = sum(map(len, map(gpt2().decode_single_token_bytes, windows[1][is_text].tolist())))
    assert 0 < is_text.sum() < is_text.numel()
    assert final["val_bpb"] == pytest.approx(losses[is_text].sum().item() / math.log(2) / n_bytes)


def test_summary_has_bits_per_byte_and_what_was_tracked(made: Any) -> None:
    summary = json.loads((folder(made("bytes")) / "summary.json").read_text())
    assert summary["best"]["value"] == min(summary["val_bpb"])
    assert summary["final_val_bpb"] == summary["final_val_loss"] / math.log(2)


def test_bits_per_byte_are_absent_where_the_tokenizer_is_unknown(tmp_path: Path) -> None:
    short = {"iterations": 2, "eval_freq": 1, "eval_batches": 1}
    outcome = train(tmp_path, **short, track="val_bpb")
    assert outcome.returncode == 2 and len(outcome.stderr.splitlines()) == 1, outcome.stderr
    assert "the tokenizer of these data is not known here); there are: val_loss, val_pp," in outcome.stderr
    assert not any("val_bpb" in row for row in metrics(trained(tmp_path, **short)))


@pytest.mark.parametrize("name", ["bytes", "tokenizer.json"])
def test_a_model_writes_text_in_its_tokens(made: Any, name: str, tmp_path: Path) -> None:
    """Also where the dataset is gone."""
    flags = ["--prompt", "Shall — ☃", "--max_new_tokens", 8, "--data_dir", tmp_path]
    said = told("generate.py", "--checkpoint", folder(made(name)), "--dataset", "gone", *flags)
    assert said.startswith("Shall — ☃") and len(said) > len("Shall — ☃\n")


def test_a_tokenizer_that_is_gone_may_be_given(made: Any, place: Path) -> None:
    results, kept = made("tokenizer.json"), place / "kept.json"
    shutil.move(read_meta(place / "tokenizer.json")["tokenizer_file"], kept)
    words = [sys.executable, "generate.py", "--checkpoint", folder(results), "--prompt", "a"]
    try:
        outcome = run(list(map(str, words)))
        assert outcome.returncode == 2 and "is gone: put it back (SHA-256" in outcome.stderr
        assert told(*words[1:], "--max_new_tokens", 1, "--tokenizer", kept).startswith("a")
    finally:
        shutil.move(kept, place / "tokenizer.json" / "tokenizer.json")


@pytest.mark.parametrize("name", ["bytes", "tokenizer.json"])
def test_an_export_has_the_tokenizer_of_its_tokens(made: Any, place: Path, name: str, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    told("-m", "models.export", folder(made(name)), tmp_path / "out")
    loaded = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    found = loaded.encode(TEXT)
    if name == "bytes":
        assert found == list(TEXT.encode())
    assert (loaded.decode(found), loaded.eos_token_id) == (TEXT, read_meta(place / name).get("end_of_text"))
