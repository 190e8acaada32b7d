"""The job of fine-tuning, run without SLURM, and the flags that a checkpoint's network has."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import config
from bench import arithmetic
from config.recipe import recipes
from data import tokenize
from files import load_json, write_json
from optim import inherited
from optim.checkpoint import save_checkpoint
from tests.job_calls import call, job

MODEL = {
    "model": "lncot",
    "vocab_size": 256,
    "n_layer": 3,
    "n_layer_begin": 1,
    "n_layer_end": 1,
    "n_repeat": 2,
}
WIDTH = {"n_embd": 16, "n_head": 2, "sequence_length": 32}


def checkpoint(results: Path, **values: Any) -> Path:
    """An experiment with the final checkpoint of a network that was not trained."""
    from models import make_model_from_args

    args = config.add_defaults({**MODEL, **WIDTH, **values})
    folder = results / "texts" / args.model / "start"
    folder.mkdir(parents=True)
    save_checkpoint(
        folder / "ckpt.pt",
        {"model": make_model_from_args(args).state_dict(), "itr": 7, "args": vars(args)},
    )
    return folder


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Examples of sums, and where results go."""
    root = tmp_path_factory.mktemp("tune")
    arithmetic.write(root / "raw", digits=1, count=60)
    for form in ("chat", "pairs"):
        words = ["--name", form, "--input", str(root / "raw" / f"{form}.jsonl"), "--format", form]
        words += ["--data_dir", str(root / "sets"), "--tokenizer", "bytes", "--workers", "1"]
        assert tokenize.main(words) == 0
    checkpoint(root / "exps")
    folders = {"RESULTS_DIR": "exps", "DATA_DIR": "sets", "SCRATCH_DIR": "."}
    return {name: str(root / folder) for name, folder in folders.items()}


@pytest.fixture(scope="module")
def start(places: dict[str, str]) -> Path:
    return next(Path(places["RESULTS_DIR"]).glob("texts/*/start"))


# the job


@pytest.mark.slow
@pytest.mark.usefixtures("no_slurm")
def test_it_trains_the_checkpoint_s_network_and_another_goes_on_from_it(
    clone: Path, places: dict[str, str], start: Path
) -> None:
    settings = {**places, "DATASET": "chat", "ITERATIONS": "4", "BATCH_SIZE": "2", "ACC_STEPS": "1"}
    done = call("bash", job(clone, "tune"), "sft", start, "--local", **settings, ADAPT="lora:2")
    assert done.returncode == 0, done.stdout + done.stderr
    results = Path(places["RESULTS_DIR"])
    (summary,) = (load_json(path) for path in results.glob("chat/*/sft-start-lora_2/summary.json"))
    assert {name: summary["args"][name] for name in WIDTH} == WIDTH
    assert (summary["args"]["objective"], summary["args"]["adapt"], summary["args"]["lr"]) == (
        "sft",
        "lora:2",
        1e-3,
    )
    done = call(
        "bash", job(clone, "tune"), "dpo", "sft-start-lora_2", "--local", **{**settings, "DATASET": "pairs"}
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (summary,) = (load_json(path) for path in results.glob("pairs/*/dpo-sft-start-lora_2/summary.json"))
    assert summary["initial"]["given"] == "sft-start-lora_2" and summary["args"]["adapt"] is None


@pytest.mark.slow
@pytest.mark.usefixtures("no_slurm")
def test_a_stage_of_a_graph_may_come_before_its_start(clone: Path, places: dict[str, str]) -> None:
    """As iridis.graph asks, of an experiment that an earlier stage has yet to train."""
    later = Path(places["RESULTS_DIR"]) / "owt2" / "base" / "d12"
    for option, last in (("--where", "chat/base/sft-d12"), ("--state", "todo")):
        done = call("bash", job(clone, "tune"), option, "sft", later, **places, DATASET="chat", RECIPE="gpt")
        assert done.returncode == 0 and done.stdout.splitlines()[-1].endswith(last), done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("no_slurm")
@pytest.mark.parametrize(
    ("words", "settings", "said"),
    [
        (["sft"], {}, "sft, dpo or grpo, then a checkpoint"),
        (["ppo", "x"], {}, "sft, dpo or grpo, then a checkpoint"),
        (["sft", "x"], {"DATASET": ""}, "DATASET is needed"),
        (["sft", "/nowhere/x"], {}, "no such file or folder"),
        (["--where", "sft", "/nowhere/x"], {}, "nor does the path say of which model"),
    ],
)
def test_bad_input_is_refused_in_a_line(
    clone: Path, places: dict[str, str], words: list[str], settings: dict[str, str], said: str
) -> None:
    before = list((clone / "iridis" / "tune").glob("run_*"))
    done = call("bash", job(clone, "tune"), *words, **{**places, "DATASET": "chat", **settings})
    assert done.returncode == 2 and said in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert done.stdout == "" and list((clone / "iridis" / "tune").glob("run_*")) == before


@pytest.mark.slow
@pytest.mark.usefixtures("no_slurm")
def test_rates_of_recipe_gpt_are_as_they_are_given(
    clone: Path, places: dict[str, str], tmp_path: Path
) -> None:
    values = {"recipe": "gpt", "model": "base", "n_layer": 2, "n_embd": 32, "n_head": 2, "iterations": 5}
    folder = checkpoint(tmp_path, **values)
    done = call(
        "bash", job(clone, "tune"), "sft", folder, "--dry-run", "--local", **places, DATASET="chat", LR="0.5"
    )
    assert done.returncode == 0, done.stderr
    (line,) = [line for line in done.stdout.splitlines() if "main.py" in line]
    assert "main.py gpt --model base" in line or "main.py gpt --vocab_size 256" in line, line
    assert "--rate_scale 1 " in line and "--lr 0.5 " in line


# the flags


def test_flags_that_differ_from_the_recipe_s_are_printed(
    start: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inherited.main([str(start)]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed.pop("model") == "cotformer_full_depth_lnmid_depthemb"
    assert printed == {**WIDTH, **{name: MODEL[name] for name in MODEL if name not in ("model", "n_repeat")}}


@pytest.mark.parametrize("recipe", [name for name, each in recipes().items() if "objective" in each.flags])
def test_config_and_words_give_the_same_network(
    recipe: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = {"recipe": recipe, "model": "adm", "n_repeat": 3, "training_length_factor": [0.5, 0.25]}
    values |= {"disable_ln_mid": True, "sequence_length": 96, "n_embd": 64, "n_head": 4, "n_layer": 3}
    values |= {"vocab_size": 300, "iterations": 9, "acc_steps": 2, "exp_name": "x", "eval_batches": 3}
    if recipe == "cotformer":
        del values["recipe"]
    found = inherited.of_settings(vars(config.add_defaults({**values, "adapt": "lora:8", "init_from": "y"})))
    write_json(tmp_path / "flags.json", inherited.as_config(found))
    rest = ["--iterations", "9", "--acc_steps", "2", "--eval_batches", "3"]
    name = [] if recipe == "cotformer" else [recipe]
    by_config = config.parse_args([*name, "--config", str(tmp_path / "flags.json"), *rest])
    by_words = config.parse_args([*inherited.as_words(found), *rest])
    given = {name: value for name, value in values.items() if name not in ("model", "exp_name", "recipe")}
    for args in (by_config, by_words):
        assert {name: getattr(args, name) for name in given} == given
        assert args.model.startswith("adaptive_cotformer") and args.adapt is None
    assert {**vars(by_config), "config": None} == vars(by_words)


def test_a_pipe_is_a_config_file(start: Path) -> None:
    program = f"{sys.executable} -m optim.inherited {start}"
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} main.py --config <({program}) --print_config"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and json.loads(done.stdout)["n_embd"] == 16, done.stderr


def test_a_checkpoint_without_settings_is_refused_in_a_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(tmp_path / "ckpt.pt", {"model": {}, "itr": 1})
    with pytest.raises(SystemExit) as ended:
        inherited.main([str(tmp_path)])
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and "holds no settings" in line


def test_what_a_path_says_of_a_training_to_come() -> None:
    assert inherited.of_place("/exps/owt2/base/d12", "gpt") == {"recipe": "gpt", "model": "base"}
    assert not inherited.is_begun("/exps/owt2/base/d12")
