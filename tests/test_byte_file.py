"""Checkpoint files of the byte GPT's public loop: written by models.export, opened by every program, resumed
by the recipe `bytes`.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import config
from errors import UserError
from models.export import main as export_main
from optim import foreign
from optim.byte_file import as_ours, write
from optim.checkpoint import load_checkpoint
from optim.selftest import differing, leaves
from optim.setup import starting_point
from tests.corpora import write_sources
from tests.helpers import same
from tests.programs import PEER, ROOT, folder, metrics, python, run

SIZES = {"wiki": 4000, "roam": 2000, "primer": 1000}
SETTINGS = {
    "L": 2,
    "C": 16,
    "H": 2,
    "d_ff": 24,
    "T": 8,
    "B": 4,
    "total_steps": 8,
    "warmup_steps": 2,
    "eval_every": 4,
    "eval_steps": 2,
    "ckpt_every": 4,
    "log_every": 1,
    "keep_checkpoints": 0,
    "device": "cpu",
    "exp_name": "run",
}


def words(**changes: Any) -> list[str]:
    settings = {**SETTINGS, **changes}
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def train(results: Path, data_dir: Path, **changes: Any) -> Any:
    places = {"results_base_folder": results, "data_dir": data_dir}
    return run([*python(), "main.py", "bytes", *words(**places, **changes)])


def export(checkpoint: Path, target: Path) -> Any:
    given = ["--format", "bytes", "--output", str(target)]
    return run([*python(), "-m", "models.export", str(checkpoint), *given])


def content(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=True)


def changed(path: Path, target: Path, **changes: Any) -> Path:
    """A copy of a file with other values; None leaves one out."""
    state = {**content(path), **changes}
    write({name: value for name, value in state.items() if value is not None}, target)
    return target


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("datasets")
    write_sources(place, SIZES, "bytes")
    return place


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    """The results of a whole training."""
    results = tmp_path_factory.mktemp("whole")
    outcome = train(results, data_dir)
    assert outcome.returncode == 0, outcome.stderr
    return results


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory, done: Path) -> Path:
    """Its step 4 as the byte GPT's own file."""
    place = tmp_path_factory.mktemp("files")
    outcome = export(folder(done) / "ckpt_4.pt", place)
    assert outcome.returncode == 0, outcome.stderr
    return place / "step_0000004.pt"


@pytest.fixture(scope="module")
def dropped(tmp_path_factory: pytest.TempPathFactory, data_dir: Path) -> Path:
    """The byte GPT's file of a training whose weights sum to 8, and whose source nowhere is missing."""
    place = tmp_path_factory.mktemp("dropped")
    mixture = {"p_train": "wiki=3,roam=1,nowhere=4", "normalise_weights": "on", "missing_sources": "drop"}
    outcome = train(place / "exps", data_dir, total_steps=1, **mixture)
    assert outcome.returncode == 0, outcome.stderr
    outcome = export(folder(place / "exps") / "ckpt.pt", place / "x.pt")
    assert outcome.returncode == 0, outcome.stderr
    return place / "x.pt"


@pytest.fixture
def told(tmp_path: Path, data_dir: Path, capfd: pytest.CaptureFixture[str]) -> Any:
    """What is said of a training that is refused; asserts that it leaves no checkpoint."""

    def lines(**changes: Any) -> list[str]:
        outcome = train(tmp_path / "refused", data_dir, **changes)
        assert outcome.returncode == 2, outcome.stderr
        assert not list((tmp_path / "refused").rglob("*.pt"))
        return [line.removeprefix("main.py: error: ") for line in outcome.stderr.splitlines()]

    return lines


# writing


def test_file_holds_what_its_loop_saves(file: Path, done: Path) -> None:
    found = content(file)
    assert found["model_cfg"] == {
        "V": 256,
        "T": 8,
        "C": 16,
        "L": 2,
        "H": 2,
        "d_ff": 24,
        "dropout": 0.1,
        "rope_theta": 10000.0,
    }
    train_cfg = found["train_cfg"]
    assert train_cfg["p_train"] == {"wiki": 0.784, "roam": 0.196, "primer": 0.02}
    assert (train_cfg["total_steps"], train_cfg["B"], train_cfg["base_lr"]) == (8, 4, 3e-4)
    assert found["step"] == 4
    best = [row["val_loss"] for row in metrics(done) if (row["kind"], row["step"]) == ("eval@wiki", 4)]
    assert found["best_val_loss"] == best[0]


def test_tied_weight_is_stored_once_under_both_names(file: Path) -> None:
    state = content(file)["model_state"]
    assert state["tok_emb.weight"].data_ptr() == state["lm_head.weight"].data_ptr()


def test_optimizer_state_is_that_of_adamw_over_its_parameters(file: Path) -> None:
    state = content(file)
    parameters = [
        torch.nn.Parameter(value) for name, value in state["model_state"].items() if name != "lm_head.weight"
    ]
    theirs = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)
    assert state["optimizer_state"]["param_groups"][0].keys() == theirs.state_dict()["param_groups"][0].keys()
    theirs.load_state_dict(state["optimizer_state"])
    assert all(theirs.state[p]["exp_avg"].shape == p.shape for p in parameters)


def test_same_checkpoint_gives_the_same_bytes(file: Path, done: Path, tmp_path: Path) -> None:
    export(folder(done) / "ckpt_4.pt", tmp_path / "other.pt")
    assert (tmp_path / "other.pt").read_bytes() == file.read_bytes()


def test_a_file_of_its_own_is_written_as_it_is(file: Path, tmp_path: Path) -> None:
    export(file, tmp_path / "again.pt")
    assert (tmp_path / "again.pt").read_bytes() == file.read_bytes()


def test_a_file_of_its_own_that_lacks_a_weight_is_not_passed_on(file: Path, tmp_path: Path) -> None:
    state = content(file)["model_state"]
    del state["ln_f.bias"]
    outcome = export(changed(file, tmp_path / "x.pt", model_state=state), tmp_path / "y.pt")
    assert outcome.returncode == 2 and "it lacks transformer.ln_f.bias" in outcome.stderr
    assert not (tmp_path / "y.pt").exists()


@pytest.mark.slow
def test_its_mixture_has_the_shares_that_were_trained_with(dropped: Path) -> None:
    assert content(dropped)["train_cfg"]["p_train"] == {"wiki": 0.75, "roam": 0.25}


def test_file_that_is_there_is_not_replaced(file: Path, done: Path) -> None:
    before = file.read_bytes()
    for target in (file, file.parent):
        outcome = export(folder(done) / "ckpt_4.pt", target)
        assert outcome.returncode == 2 and f"{file} is there already" in outcome.stderr
    assert file.read_bytes() == before


def test_another_network_is_refused(tmp_path: Path) -> None:
    outcome = export(next(PEER.glob("exps/*/*/official_adm/ckpt.pt")), tmp_path / "x.pt")
    (line,) = outcome.stderr.splitlines()
    assert outcome.returncode == 2 and line.startswith(
        "models.export: error: no byte GPT has --model adaptive"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "given", [["--format", "bytes"], ["--output", "x.pt"], ["F", "--format", "bytes", "--output", "x.pt"]]
)
def test_a_form_and_its_file_go_together(given: list[str]) -> None:
    from models.export import parse

    with pytest.raises(UserError, match="--output FILE"):
        parse(["CHECKPOINT", *given])


# reading


def test_weights_and_flags_are_read_as_they_were(file: Path, done: Path) -> None:
    ours, read = load_checkpoint(folder(done) / "ckpt_4.pt"), load_checkpoint(file)
    assert read["itr"] == 4 and read["args"]["recipe"] == "bytes"
    weights = {name: value for name, value in ours["model"].items() if not name.endswith(".freqs")}
    assert weights.keys() == read["model"].keys()
    assert all(torch.equal(value, read["model"][name]) for name, value in weights.items())
    shared = ("n_layer", "mlp_width", "dataset", "lr", "seed", "batch_size", "mlp_bias", "decayed")
    assert [read["args"][name] for name in shared] == [ours["args"][name] for name in shared]


def test_file_without_the_optional_parts_is_read(file: Path, tmp_path: Path) -> None:
    path = changed(file, tmp_path / "x.pt", optimizer_state=None, best_val_loss=None, train_cfg=None)
    state = load_checkpoint(path)
    assert (state["optimizer_state"], state["best_val_loss"]) == (None, None)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model_cfg": []}, "its model_cfg is no dict"),
        ({"model_cfg": {"V": "many"}}, "V must be a whole number, not 'many'"),
        ({"model_cfg": {"n_kv_head": 2}}, "of another network than the byte GPT: it has 'n_kv_head'"),
        ({"train_cfg": {"p_train": {"a": "b"}}}, "p_train must give a number as the weight of a"),
        ({"model_state": {"blocks.0.attn.wq.weight": torch.ones(2)}}, "it has 'blocks.0.attn.wq.weight'"),
        ({"model_state": {3: torch.ones(2)}}, "it has 3"),
        (
            {"model_state": {"tok_emb.weight": torch.ones(2), "lm_head.weight": torch.zeros(2)}},
            "its lm_head.weight is not tok_emb.weight",
        ),
        ({"step": -1}, "its step is '-1'"),
        ({"step": True}, "its step is 'True'"),
        ({"best_val_loss": "low"}, "its best_val_loss is no number"),
        ({"optimizer_state": 3}, "its optimizer_state is no dict"),
    ],
)
def test_damaged_or_foreign_file_is_told_in_one_line(file: Path, changes: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as raised:
        as_ours({**content(file), **changes}, file)
    assert said in str(raised.value) and len(str(raised.value).splitlines()) == 1


@pytest.mark.slow
def test_file_is_evaluated_with_flags_under_its_names(file: Path, data_dir: Path, tmp_path: Path) -> None:
    places = ["--data_dir", str(data_dir), "--output_dir", str(tmp_path)]
    outcome = run([*python(), "eval.py", "--checkpoint", str(file), *places, "--p_train", "wiki", "--B", "2"])
    assert outcome.returncode == 0, outcome.stderr
    summary = json.loads((tmp_path / "eval_summary_step_0000004.json").read_text())
    assert (summary["itr"], summary["args"]["batch_size"], summary["args"]["dataset"]) == (4, 2, "wiki")


@pytest.mark.slow
def test_training_begins_with_its_weights(file: Path, data_dir: Path, tmp_path: Path) -> None:
    outcome = train(tmp_path, data_dir, init_from=file, total_steps=1)
    assert outcome.returncode == 0 and f"began with the weights of {file}" in outcome.stdout


def test_a_row_is_all_that_another_format_needs(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours = load_checkpoint(folder(done) / "ckpt_4.pt")

    def as_ours(content: Mapping[str, Any], path: Path) -> dict[str, Any]:
        return {"model": content["theirs"], "args": ours["args"], "itr": 3}

    row = replace(foreign.FOREIGN[0], recognises=lambda content: "theirs" in content, as_ours=as_ours)
    monkeypatch.setattr(foreign, "FOREIGN", (*foreign.FOREIGN, row))
    write({"theirs": ours["model"], "of_step": 3}, tmp_path / "x.pt")
    assert load_checkpoint(tmp_path / "x.pt")["itr"] == 3
    outcome = export_main([str(tmp_path / "x.pt"), "--format", "bytes", "--output", str(tmp_path / "y.pt")])
    assert outcome == 0 and content(tmp_path / "y.pt")["step"] == 3


def test_what_a_job_asks_before_it_is_queued_needs_no_torch() -> None:
    asked = "import sys, optim.resumable, optim.restore; print('torch' in sys.modules)"
    words = [sys.executable, "-c", asked]
    assert subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stdout == "False\n"


# resuming


@pytest.fixture(scope="module")
def resumed(tmp_path_factory: pytest.TempPathFactory, file: Path, data_dir: Path) -> tuple[Path, str]:
    """The results of a training that went on from the file, and what it printed."""
    results = tmp_path_factory.mktemp("resumed")
    outcome = train(results, data_dir, resume=file)
    assert outcome.returncode == 0, outcome.stderr
    return results, outcome.stdout


def test_resumed_training_ends_with_the_bits_of_the_unbroken_one(
    resumed: tuple[Path, str], done: Path
) -> None:
    states = [content(folder(results) / "ckpt.pt") for results in (done, resumed[0])]
    for state in states:
        del state["args"]
    assert differing(*(leaves(state) for state in states)) == []


def test_resumed_training_goes_on_at_the_files_step(resumed: tuple[Path, str], done: Path) -> None:
    rows, whole = metrics(resumed[0]), metrics(done)
    trained = [row for row in rows if row["kind"] == "train"]
    assert [row["step"] for row in trained] == [5, 6, 7, 8]
    assert same(trained, [row for row in whole if row["kind"] == "train" and row["step"] > 4])


def test_what_the_file_cannot_hold_is_said_in_one_line(resumed: tuple[Path, str], file: Path) -> None:
    (line,) = [line for line in resumed[1].splitlines() if line.startswith("note: step_")]
    assert "holds neither generators nor where its data were read" in line


@pytest.mark.slow
def test_best_loss_of_the_file_is_told_and_does_not_count(file: Path, data_dir: Path, tmp_path: Path) -> None:
    """It is of windows that its loop drew at random."""
    path = changed(file, tmp_path / "theirs.pt", best_val_loss=0.5)
    outcome = train(tmp_path, data_dir, resume=path)
    assert outcome.returncode == 0 and "; its best loss, 0.5, is of other windows than ours" in outcome.stdout
    best = content(folder(tmp_path) / "best.pt")["best"]
    assert best["quantity"] == "val_loss@wiki" and best["value"] > 0.5 and best["step"] == 8


def test_shapes_that_differ_are_listed_by_its_names(told: Any, file: Path) -> None:
    assert told(resume=file, V=300, L=3, dropout=0) == [
        f"cannot resume {file}: V: loaded=256, current=300",
        f"cannot resume {file}: L: loaded=2, current=3",
        f"cannot resume {file}: dropout: loaded=0.1, current=0.0",
    ]


def test_shapes_of_our_own_checkpoint_are_listed_so_too(told: Any, done: Path) -> None:
    path = folder(done) / "ckpt_4.pt"
    end = "; give that, or another --exp_name"
    assert told(resume=path, T=4, C=32) == [
        f"cannot resume {path}: C: loaded=16, current=32{end}",
        f"cannot resume {path}: T: loaded=8, current=4{end}",
    ]


def test_a_setting_that_the_file_lacks_counts_as_none(told: Any, file: Path, tmp_path: Path) -> None:
    settings = {name: value for name, value in content(file)["model_cfg"].items() if name != "H"}
    path = changed(file, tmp_path / "x.pt", model_cfg=settings)
    assert told(resume=path) == [f"cannot resume {path}: H: loaded=None, current=2"]


def test_file_without_optimizer_state_is_no_place_to_go_on_from(
    told: Any, file: Path, tmp_path: Path
) -> None:
    path = changed(file, tmp_path / "x.pt", optimizer_state=None)
    (line,) = told(resume=path)
    assert line == (
        f"cannot resume {path}: it holds no state of an optimiser; --init_from begins a training with its"
        " weights"
    )


@pytest.mark.parametrize("part", ["params", "state", "moments"])
def test_optimizer_state_of_other_parameters_is_refused(
    part: str, told: Any, file: Path, tmp_path: Path
) -> None:
    state = content(file)["optimizer_state"]
    if part == "params":
        state["param_groups"][0]["params"].pop()
    elif part == "state":
        state["state"] = {}
    else:
        del state["state"][3]["exp_avg_sq"]
    path = changed(file, tmp_path / "x.pt", optimizer_state=state)
    (line,) = told(resume=path)
    assert line.startswith(f"cannot resume {path}: its optimizer_state is not that of one AdamW over ")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"total_steps": 3}, "it is of step 4, and --total_steps 3 is less"),
        ({"opt": "sgd"}, "its optimiser is adamw, this run's sgd"),
        ({"mlp_bias": "off"}, "it is of a byte GPT, which has no --mlp_bias false"),
    ],
)
def test_training_that_cannot_go_on_from_it_is_refused(
    told: Any, file: Path, changes: dict[str, Any], said: str
) -> None:
    assert told(resume=file, **changes) == [f"cannot resume {file}: {said}"]


def test_a_file_of_a_step_in_the_working_directory_is_given_by_its_path(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(file.parent)
    with pytest.raises(UserError, match=r"ckpt_4\.pt; step_0000004\.pt .* path, \./step_0000004\.pt$"):
        starting_point(tmp_path, config.parse_args(["bytes", "--resume", file.name]).use_pretrained)
    given = config.parse_args(["bytes", "--resume", f"./{file.name}"]).use_pretrained
    assert starting_point(tmp_path, given) == Path(file.name)


@pytest.mark.slow
def test_a_step_by_its_name_is_our_checkpoint_of_it(done: Path, data_dir: Path, tmp_path: Path) -> None:
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    (folder(tmp_path) / "summary.json").unlink()
    outcome = train(tmp_path, data_dir, resume="step_0000004.pt")
    assert outcome.returncode == 0 and "rolled back to step 4" in outcome.stdout
