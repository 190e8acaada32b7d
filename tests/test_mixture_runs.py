"""Trainings on a mixture of datasets, and what reads their checkpoints."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

import config
from data.sources import lacking_sources
from tests.corpora import write_sources
from tests.programs import folder, metrics, python, run, train, trained

SIZES = {"wiki": 9000, "roam": 4000, "primer": 2000}
MIXTURE = "wiki=0.784,roam=0.196,primer=0.02"
SHORT = {"model": "base", "n_layer": 1, "n_layer_begin": 0, "n_layer_end": 0, "n_repeat": 1}
SETTINGS = {
    **SHORT,
    "vocab_size": 256,
    "iterations": 12,
    "eval_freq": 3,
    "log_freq": 1,
    "dropout": 0,
    "depth_embedding": None,
    "dataset": MIXTURE,
    "track": "val_loss@roam",
}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("datasets")
    write_sources(place, SIZES, "bytes")
    return place


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    return trained(tmp_path_factory.mktemp("mixture"), data_dir=data_dir, **SETTINGS)


def train_on(results: Path, data_dir: Path, **changes: Any) -> subprocess.CompletedProcess[str]:
    return train(results, **{**SETTINGS, "data_dir": data_dir, **changes})


def refused(outcome: subprocess.CompletedProcess[str]) -> list[str]:
    """The lines of a refusal, without what precedes each."""
    assert outcome.returncode == 2, outcome.stderr
    lines = outcome.stderr.splitlines()
    assert all(line.startswith("main.py: error: ") for line in lines)
    return [line.removeprefix("main.py: error: ") for line in lines]


@pytest.mark.parametrize("parts", ["wiki=0.5,zzz=0.3,yyy=0.1", "wiki=0.5,zzz=x,yyy=0.1"])
def test_a_wrong_mixture_is_told_with_its_missing_sources(
    data_dir: Path, capsys: pytest.CaptureFixture[str], parts: str
) -> None:
    words = ["--dataset", parts, "--data_dir", str(data_dir)]
    with pytest.raises(SystemExit):
        config.parse_args(words, problems_of_sources=lacking_sources)
    said = capsys.readouterr().err
    missing = [name for name in ("wiki", "zzz", "yyy") if f"dataset {name!r} is not prepared" in said]
    assert missing == (["zzz", "yyy"] if "0.3" in parts else [])


# what a training leaves


def test_the_first_lines_show_each_source(done: Path) -> None:
    log = (folder(done) / "train.log").read_text()
    for name, share, epochs in (("wiki", 0.784, 0.40), ("roam", 0.196, 0.23), ("primer", 0.02, 0.05)):
        tokens = f"{SIZES[name]:,} training and {SIZES[name] // 10:,} validation tokens"
        assert f"  {name}: {tokens}, share {share}, {epochs:.2f} epochs to come" in log


def test_every_source_has_a_row_at_every_evaluation(done: Path) -> None:
    kinds = [(row["kind"], row["step"]) for row in metrics(done) if row["kind"].startswith("eval")]
    assert kinds == [(f"eval@{name}", step) for step in (3, 6, 9, 12) for name in SIZES]


def test_gradient_norms_are_in_the_row_of_the_first_source(done: Path) -> None:
    with_norms = {row["kind"] for row in metrics(done) if "max_grad_norm" in row}
    assert with_norms == {"eval@wiki"}


def test_the_summary_has_every_source(done: Path) -> None:
    summary = json.loads((folder(done) / "summary.json").read_text())
    finals = {row["kind"]: row["val_loss"] for row in metrics(done) if row["kind"].startswith("final")}
    assert {f"final@{name}": summary[f"final_val_loss@{name}"] for name in SIZES} == finals


def test_the_best_checkpoint_is_of_the_lowest_point_of_the_curve(done: Path) -> None:
    summary = json.loads((folder(done) / "summary.json").read_text())
    assert summary["best"]["value"] == min(summary["val_loss@roam"])


def test_the_mixture_has_a_folder_of_its_own(done: Path) -> None:
    assert folder(done).parent.parent.name == "mix-primer-roam-wiki-48a08cab"


def test_a_finished_training_is_known_again(done: Path, data_dir: Path) -> None:
    outcome = train_on(done, data_dir)
    assert outcome.returncode == 0 and "is finished already: nothing to do" in outcome.stdout


@pytest.mark.slow
@pytest.mark.parametrize("sampling", ["epochs", "random"])
def test_two_processes_see_the_same_samples(tmp_path: Path, data_dir: Path, sampling: str) -> None:
    losses = []
    for processes in (1, 2):
        results = tmp_path / str(processes)
        changes = {**SETTINGS, "data_dir": data_dir, "sampling": sampling, "eval_freq": 0, "track": None}
        trained(results, processes, **changes)
        losses.append([row["loss"] for row in metrics(results) if row["kind"] == "train"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)


# what another command may change


@pytest.fixture
def begun(done: Path, tmp_path: Path) -> Path:
    """A copy of the experiment at its last numbered checkpoint."""
    results = Path(shutil.copytree(done, tmp_path / "results"))
    for name in ("ckpt.pt", "summary.json"):
        (folder(results) / name).unlink()
    return results


@pytest.mark.parametrize("text", ["roam=0.196,primer=0.02,wiki=0.784", "wiki=3920,roam=980,primer=100"])
def test_other_words_for_the_same_mixture_go_on(begun: Path, data_dir: Path, text: str) -> None:
    outcome = train_on(begun, data_dir, dataset=text, normalise_weights=text.startswith("wiki"))
    assert outcome.returncode == 0 and "resumed from" in outcome.stdout, outcome.stderr


def test_another_text_of_a_source_is_refused(begun: Path, data_dir: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(data_dir, tmp_path / "other"))
    write_sources(other / "new", {"filler": 10, "more": 10, "roam": 4000})
    shutil.rmtree(other / "roam")
    (other / "new" / "roam").rename(other / "roam")
    shutil.copy(data_dir / "roam" / "meta.json", other / "roam")
    lines = refused(train_on(begun, other))
    assert ["source roam: the training data differ" in line for line in lines] == [True, False]


def test_another_sampling_is_refused(begun: Path, data_dir: Path) -> None:
    lines = refused(train_on(begun, data_dir, sampling="random"))
    assert "--sampling: the checkpoint has epochs, this run random" in lines[0]


def test_a_source_that_is_there_no_longer_makes_it_another_mixture(
    begun: Path, data_dir: Path, tmp_path: Path
) -> None:
    fewer = Path(shutil.copytree(data_dir, tmp_path / "fewer"))
    shutil.rmtree(fewer / "primer")
    (line,) = refused(train_on(begun, fewer, missing_sources="drop"))
    assert "the mixture's weights: the checkpoint has" in line


# sources that cannot be read


def test_all_missing_sources_are_named(tmp_path: Path, data_dir: Path) -> None:
    text = "wiki=0.5,here=0.25,there=0.25"
    lines = refused(train_on(tmp_path, data_dir, dataset=text, track=None))
    assert [line.split(":")[0] for line in lines] == [
        "dataset 'here' is not prepared",
        "dataset 'there' is not prepared",
    ]


def test_missing_sources_are_left_out_where_that_is_asked_for(tmp_path: Path, data_dir: Path) -> None:
    text = "wiki=0.6,gone=0.2,roam=0.2"
    changes = {"dataset": text, "missing_sources": "drop", "iterations": 1, "eval_freq": 1}
    outcome = train_on(tmp_path, data_dir, **changes)
    assert "warning: sources of the mixture are not prepared: gone;" in outcome.stdout
    assert "wiki: 9,000 training and 900 validation tokens, share 0.75," in outcome.stdout


def test_what_is_tracked_must_not_be_missing(tmp_path: Path, data_dir: Path) -> None:
    changes = {"dataset": "wiki=0.8,gone=0.2", "missing_sources": "drop", "track": "val_loss@gone"}
    (line,) = refused(train_on(tmp_path, data_dir, **changes))
    assert line.startswith("dataset 'gone' is not prepared:") and "--tokenizer bytes --data_dir " in line


def test_short_sources_are_named_with_their_lengths(tmp_path: Path, data_dir: Path) -> None:
    (line,) = refused(train_on(tmp_path, data_dir, sequence_length=4000))
    assert "fewer than the 4001 tokens that a sequence needs: roam (4000), primer (2000)" in line


def test_sources_of_two_tokenizers_are_refused(tmp_path: Path) -> None:
    write_sources(tmp_path, {"wiki": 5000}, "bytes")
    write_sources(tmp_path, {"roam": 5000}, "gpt2")
    (line,) = refused(train_on(tmp_path / "e", tmp_path, dataset="wiki=0.5,roam=0.5"))
    assert "of one tokenizer, and these are not (wiki: bytes, roam: gpt2)" in line


def test_one_dataset_under_two_names_is_refused(tmp_path: Path) -> None:
    write_sources(tmp_path, {"openwebtext2": 5000})
    (line,) = refused(train_on(tmp_path / "e", tmp_path, dataset="owt2=0.5,openwebtext2=0.5", track=None))
    assert line.startswith("the sources owt2 and openwebtext2 of the mixture are one dataset")


# programs that read the checkpoints


@pytest.fixture(scope="module")
def evaluated(done: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    place = tmp_path_factory.mktemp("evaluation")
    words = ["--checkpoint", str(folder(done) / "ckpt.pt"), "--output_dir", str(place), "--device", "cpu"]
    outcome = run([*python(), "eval.py", *words])
    assert outcome.returncode == 0, outcome.stderr
    found: dict[str, Any] = json.loads((place / "eval_summary_ckpt.json").read_text())
    return found


def test_eval_has_the_losses_of_the_last_evaluation_of_each_source(
    done: Path, evaluated: dict[str, Any]
) -> None:
    finals = {row["kind"]: row["val_loss"] for row in metrics(done) if row["kind"].startswith("final")}
    mine = {f"final@{name}": source["val_loss"] for name, source in evaluated["sources"].items()}
    assert mine == pytest.approx(finals, rel=1e-12)


def test_eval_has_the_mean_over_all_text(evaluated: dict[str, Any]) -> None:
    sources = evaluated["sources"].values()
    nats = sum(source["val_loss"] * source["n_tokens"] for source in sources)
    assert evaluated["val_loss"] == pytest.approx(nats / evaluated["n_tokens"], rel=1e-12)


def test_eval_of_one_source_finds_its_data(done: Path, tmp_path: Path, evaluated: dict[str, Any]) -> None:
    words = ["--checkpoint", str(folder(done) / "ckpt.pt"), "--output_dir", str(tmp_path)]
    outcome = run([*python(), "eval.py", *words, "--dataset", "roam", "--device", "cpu"])
    assert outcome.returncode == 0, outcome.stderr
    found = json.loads((tmp_path / "eval_summary_ckpt.json").read_text())
    assert found["val_loss"] == pytest.approx(evaluated["sources"]["roam"]["val_loss"], rel=1e-12)


@pytest.mark.parametrize(
    "changes",
    [
        {"dataset": "wiki=3,roam=1", "normalise_weights": True},
        {"dataset": "wiki=0.6,gone=0.2,roam=0.2", "missing_sources": "drop"},
    ],
    ids=["normalised", "one is missing"],
)
def test_eval_reads_what_the_training_read(tmp_path: Path, data_dir: Path, changes: dict[str, Any]) -> None:
    results = tmp_path / "results"
    trained(results, **{**SETTINGS, "data_dir": data_dir, "iterations": 1, "eval_freq": 1, **changes})
    words = ["--checkpoint", str(folder(results)), "--device", "cpu", "--output_dir", str(tmp_path)]
    outcome = run([*python(), "eval.py", *words])
    assert outcome.returncode == 0, outcome.stderr
    summary = json.loads((tmp_path / "eval_summary_ckpt.json").read_text())
    assert list(summary["sources"]) == ["wiki", "roam"]


@pytest.mark.parametrize("door", ["get_ppl_per_mac.py"])
def test_programs_that_read_one_dataset_ask_for_it(done: Path, door: str) -> None:
    outcome = run([*python(), door, "--checkpoint", str(folder(done) / "ckpt.pt"), "--device", "cpu"])
    assert outcome.returncode == 2
    assert outcome.stderr.splitlines() == [
        f"{door}: error: this reads one dataset, and the model was trained on a mixture: give --dataset, one"
        " of wiki, roam, primer"
    ]
