"""--init_from: the weights of another training, and nothing else of it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

import config
from config.identity import differences as flag_differences
from errors import UserError
from models import make_model_from_args
from optim import initial
from optim.checkpoint import load_checkpoint
from tests.helpers import DATA
from tests.programs import PEER, folder, train

HALF_FINISHED = DATA / "revision_55eead3" / "adaptive_one" / "stopped" / "ckpt_14.pt"
AUTHORS = next(PEER.glob("exps/*/*/official_adm/ckpt_75.pt"))
SHAPE = {
    "model": "adm",
    "vocab_size": 256,
    "n_layer": 3,
    "n_layer_begin": 1,
    "n_layer_end": 1,
    "n_repeat": 3,
    "n_embd": 16,
    "n_head": 2,
    "sequence_length": 16,
    "depth_embedding": "linear_learned",
}


def model_of(path: Path, **changes: Any) -> Any:
    """A new model of the shape that a checkpoint's flags say, some changed."""
    from optim.restore import trained_settings

    settings = trained_settings(path, load_checkpoint(path))
    return make_model_from_args(config.add_defaults({**settings, **changes}))


def weights(path: Path) -> dict[str, torch.Tensor]:
    return torch.load(path, weights_only=False)["model"]


@pytest.mark.parametrize("path", [HALF_FINISHED, AUTHORS], ids=["ours", "authors"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("is_bare", [False, True])
def test_weights_of_both_implementations_load_under_any_wrapper(
    tmp_path: Path, path: Path, prefix: str, is_bare: bool
) -> None:
    state = {prefix + name: value for name, value in weights(path).items()}
    torch.save(state if is_bare else {"model": state, "itr": 7}, tmp_path / "ckpt.pt")
    model = model_of(path)
    initial.load(model, tmp_path / "ckpt.pt")
    for name, value in model.state_dict().items():
        assert torch.equal(value, weights(path)[name]), name


def test_masks_and_angles_of_another_length_are_computed_anew(tmp_path: Path) -> None:
    state = weights(AUTHORS)
    state |= {
        "transformer.h_mid.0.attn.bias": torch.ones(1, 1, 99, 99),
        "transformer.wpe.freqs": torch.zeros_like(state["transformer.wpe.freqs"]),
    }
    torch.save({"model": state}, tmp_path / "ckpt.pt")
    model = model_of(AUTHORS, sequence_length=24)
    angles = model.transformer["wpe"].freqs.clone()
    initial.load(model, tmp_path / "ckpt.pt")
    assert torch.equal(model.transformer["wpe"].freqs, angles)


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        (
            {"n_embd": 32},
            [
                (
                    r"transformer\.h_mid\.N\.attn\.c_attn\.weight is \(48, 16\) in the file, \(96, 32\) in"
                    r" this model"
                ),
                r"transformer\.wte\.weight is \(256, 16\)",
                r"trained with --n_embd 16 \(here 32\)",
            ],
        ),
        (
            {"n_layer": 4},
            [
                r"transformer\.h_mid\.N\.ln_1\.weight is missing in the file",
                r"trained with --n_layer 3 \(here 4\)",
            ],
        ),
        (
            {"n_repeat": 5},
            [r"mod\.N\.mod_router\.weight is missing in the file", r"trained with --n_repeat 3 \(here 5\)"],
        ),
        (
            {"model": "lncot"},
            [r"mod\.N\.mod_router\.weight is in the file only \(2 blocks\)", "trained with --model adaptive"],
        ),
        (
            {"n_head": 4},
            [
                r"transformer\.wpe\.freqs is \(4,\) in the file, \(2,\) in this model",
                r"trained with --n_head 2 \(here 4\)",
            ],
        ),
    ],
    ids=str,
)
def test_what_does_not_fit_is_listed_and_changes_nothing(changes: dict[str, Any], lines: list[str]) -> None:
    model = model_of(HALF_FINISHED, **changes)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError) as caught:
        initial.load(model, HALF_FINISHED)
    for line in lines:
        assert caught.match(line)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"rope_base": 500.0}, "--rope_base 10000.0 (here 500.0)"),
        ({"attention_window_length": 4}, "--attention_window_length None (here 4)"),
        ({"mup_base_width": 8}, "--mup_base_width None (here 8)"),
    ],
    ids=str,
)
def test_weights_that_fit_and_computed_something_else_are_refused_in_one_line(
    changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(UserError) as caught:
        initial.load(model_of(HALF_FINISHED, **changes), HALF_FINISHED)
    assert str(caught.value) == f"--init_from {HALF_FINISHED}: it was trained with {said}"


def test_another_number_of_heads_without_angles_is_refused(tmp_path: Path) -> None:
    flags = {**SHAPE, "positional_encoder": "none"}
    model = make_model_from_args(config.add_defaults(flags))
    torch.save({"model": model.state_dict(), "args": flags, "itr": 1}, tmp_path / "ckpt.pt")
    initial.load(model, tmp_path / "ckpt.pt")
    with pytest.raises(UserError, match=r"^--init_from [^\n]*: it was trained with --n_head 2 \(here 4\)$"):
        initial.load(make_model_from_args(config.add_defaults(flags | {"n_head": 4})), tmp_path / "ckpt.pt")


def test_another_length_dropout_or_number_of_passes_may_begin_with_them(tmp_path: Path) -> None:
    flags = {**SHAPE, "model": "cot", "depth_embedding": None}
    model = make_model_from_args(config.add_defaults(flags))
    torch.save({"model": model.state_dict(), "args": flags, "itr": 1}, tmp_path / "ckpt.pt")
    changes = {"sequence_length": 32, "dropout": 0.1, "n_repeat": 5}
    initial.load(make_model_from_args(config.add_defaults(flags | changes)), tmp_path / "ckpt.pt")


def other(path: Path) -> str:
    """A checkpoint of other content under a path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": {"x": torch.zeros(1)}}, path)
    return str(path)


def test_the_same_file_elsewhere_is_the_same_start(tmp_path: Path) -> None:
    shutil.copy2(HALF_FINISHED, tmp_path / "moved.pt")
    assert (
        initial.differences(str(tmp_path / "moved.pt"), initial.describe(HALF_FINISHED, str(HALF_FINISHED)))
        == []
    )


def test_other_content_under_the_same_name_is_another_start(tmp_path: Path) -> None:
    path = tmp_path / "run" / "ckpt.pt"
    kept = initial.describe(Path(other(path)), str(path))
    shutil.copy2(HALF_FINISHED, path)
    assert "the training began with other weights" in initial.differences(str(path), kept)[0]


def test_a_file_that_is_gone_is_known_by_its_name(tmp_path: Path) -> None:
    path = other(tmp_path / "run" / "ckpt.pt")
    kept = initial.describe(Path(path), path)
    Path(path).unlink()
    assert initial.differences(path, kept) == []
    with pytest.raises(UserError, match=r"--init_from elsewhere/ckpt\.pt: no such file"):
        initial.differences("elsewhere/ckpt.pt", kept)


def test_an_experiment_that_was_trained_on_is_the_same_start(tmp_path: Path) -> None:
    path = other(tmp_path / "run" / "ckpt_5.pt")
    kept = initial.describe(Path(path), str(tmp_path / "run"))
    other(tmp_path / "run" / "ckpt_9.pt")
    assert initial.differences(str(tmp_path / "run"), kept) == []


@pytest.mark.parametrize(
    ("now", "then"), [("a.pt", {"init_from": None}), ("a.pt", {}), (None, {"init_from": "a.pt"})]
)
def test_to_begin_with_weights_or_without_is_another_training(now: str | None, then: dict[str, Any]) -> None:
    (line,) = flag_differences(vars(config.add_defaults({"init_from": now})), then)
    assert line == f"--init_from: the checkpoint has {then.get('init_from')}, this run {now}"


# the real thing

BEGUN = {
    **SHAPE,
    "exp_name": "run",
    "lr": 1e-12,
    "iterations": 4,
    "save_checkpoint_freq": 2,
    "eval_freq": 0,
    "batch_size": 2,
    "acc_steps": 2,
    "scheduler": "wsd",
    "weight_decay": 0.0,
}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copy2(HALF_FINISHED, tmp_path_factory.mktemp("source") / "ckpt_14.pt"))


@pytest.fixture(scope="module")
def begun(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a training by two processes that began with weights, whose file has gone since."""
    results = tmp_path_factory.mktemp("begun")
    outcome = train(results, 2, init_from=source, **BEGUN)
    assert outcome.returncode == 0 and f"began with the weights of {source}" in outcome.stdout, (
        outcome.stdout + outcome.stderr
    )
    source.unlink()
    return results


@pytest.mark.slow
@pytest.mark.essential
def test_a_training_begins_with_the_weights_and_a_fresh_optimiser(begun: Path) -> None:
    state = load_checkpoint(folder(begun) / "ckpt_2.pt")
    assert all(
        torch.allclose(value, weights(HALF_FINISHED)[name], atol=1e-9)
        for name, value in state["model"].items()
    )
    assert {float(entry["step"]) for entry in state["optimizer"]["state"].values()} == {2.0}
    assert state["initial"]["sha256"] == initial.describe(HALF_FINISHED, "")["sha256"]


@pytest.mark.slow
def test_it_resumes_when_the_file_is_gone(begun: Path, source: Path, tmp_path: Path) -> None:
    results = Path(shutil.copytree(begun, tmp_path / "results"))
    for name in ("ckpt.pt", "summary.json"):
        (folder(results) / name).unlink()
    outcome = train(results, init_from=source, **BEGUN)
    assert outcome.returncode == 0 and "resumed from" in outcome.stdout, outcome.stdout + outcome.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "line"),
    [(None, "--init_from: the checkpoint has"), (AUTHORS, "the training began with other weights")],
)
def test_a_finished_one_is_not_taken_for_another_start(begun: Path, path: Path | None, line: str) -> None:
    outcome = train(begun, init_from=path, **BEGUN)
    assert outcome.returncode == 2 and line in outcome.stderr and "Traceback" not in outcome.stderr
