"""Bad input to main.py and eval.py: exit code 2, one clear line for each problem, no traceback, nothing
lost.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.programs import PEER, ROOT, command, flags, folder, python, run, train, trained

pytestmark = pytest.mark.slow

SHORT = {"iterations": 4, "save_checkpoint_freq": 2, "eval_freq": 0}


def expect_refusal(words: list[str], said: str, lines: int = 1) -> None:
    outcome = run(words)
    assert outcome.returncode == 2, outcome.stdout + outcome.stderr
    assert "Traceback" not in outcome.stderr
    assert said in outcome.stderr
    assert len(outcome.stderr.strip().splitlines()) == lines, outcome.stderr


# of the command line itself one; test_config.py has the others
CASES: list[tuple[str, dict[str, Any], str]] = [
    ("unknown model", {"model": "lncott"}, "did you mean lncot?"),
    ("missing data", {"dataset": "nowhere"}, "dataset 'nowhere' is not prepared"),
    ("vocabulary too small", {"vocab_size": 100}, "--vocab_size is 100"),
    ("sequence longer than the split", {"sequence_length": 30000}, "too few for one sequence of 30000"),
    ("unwritable folder", {"results_base_folder": "/proc/nowhere"}, "cannot write to /proc/nowhere"),
    (
        "results folder is a file",
        {"results_base_folder": PEER / "datasets/openwebtext2/val.bin"},
        "cannot write to",
    ),
    ("backend without torchrun", {"distributed_backend": "gloo"}, "needs torchrun"),
    ("missing checkpoint", {"use_pretrained": "ckpt_7.pt"}, "--use_pretrained ckpt_7.pt: no file"),
]


@pytest.mark.parametrize(("changes", "said"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_refused(tmp_path: Path, changes: dict[str, Any], said: str) -> None:
    expect_refusal(command(tmp_path, **changes), said)


def test_all_problems_are_told_at_once(tmp_path: Path) -> None:
    expect_refusal(
        [*command(tmp_path, lr="x", batch_size=0), "--n_heads", "3"], "did you mean --n_head?", lines=3
    )


def test_processes_that_do_not_divide_the_accumulation(tmp_path: Path) -> None:
    outcome = train(tmp_path, processes=2, acc_steps=3)
    assert outcome.returncode != 0
    assert outcome.stderr.count("--acc_steps 3 is not divisible by 2 processes") == 1
    assert not list(tmp_path.iterdir())


def run_on_two(tmp_path: Path, source: str) -> subprocess.CompletedProcess[str]:
    """A program of the project's modules on two processes."""
    program = tmp_path / "program.py"
    program.write_text(source)
    return run([*python(2), str(program)], PYTHONPATH=str(ROOT))


def test_the_first_process_is_heard_even_if_it_is_the_last_to_know(tmp_path: Path) -> None:
    outcome = run_on_two(
        tmp_path,
        """
import os, time, config

time.sleep(2 if os.environ["RANK"] == "0" else 0)
config.stop("program", ["it is not here"])
""",
    )
    assert outcome.stderr.count("program: error: it is not here") == 1


def test_what_one_process_alone_meets_is_told_by_the_main_one(tmp_path: Path) -> None:
    """As where the disk of a second node lacks the data."""
    outcome = run_on_two(
        tmp_path,
        """
import sys, config, distributed
from errors import UserError

def work():
    world = distributed.start("gloo", "cpu")
    def own():
        if world.rank == 1:
            raise UserError("it is not here")
    world.on_all(own)

sys.exit(config.guarded("program", work))
""",
    )
    assert outcome.stderr.count("program: error: it is not here") == 1


def test_bin_of_odd_size(tmp_path: Path) -> None:
    data = tmp_path / "data" / "odd"
    data.mkdir(parents=True)
    for name in ("train.bin", "val.bin"):
        (data / name).write_bytes(b"abc")
    expect_refusal(
        command(tmp_path, data_dir=tmp_path / "data", dataset="odd"), "not a file of uint16 tokens"
    )


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of a training that was killed in its last evaluation."""
    results = trained(tmp_path_factory.mktemp("unfinished"), **SHORT)
    (folder(results) / "summary.json").unlink()
    return results


def test_resume_with_other_settings_is_refused_and_loses_nothing(unfinished: Path) -> None:
    before = {path.name: path.read_bytes() for path in folder(unfinished).glob("ckpt*")}
    expect_refusal(
        command(unfinished, **SHORT, dropout=0.0, seed=5),
        "--dropout: the checkpoint has 0.1, this run 0.0",
        lines=3,
    )
    assert before == {path.name: path.read_bytes() for path in folder(unfinished).glob("ckpt*")}


def test_fresh_start_over_checkpoints_is_refused(unfinished: Path) -> None:
    expect_refusal(command(unfinished, **SHORT, use_pretrained="None"), "would start afresh over")


def test_only_damaged_checkpoints_are_refused(tmp_path: Path) -> None:
    target = (
        tmp_path
        / "openwebtext2"
        / "adaptive_cotformer_mod_efficient_sigmoid_crw_lnmid_de_random_factor_single_final"
        / "run"
    )
    target.mkdir(parents=True)
    (target / "ckpt_7.pt").write_bytes(b"PK damaged")
    expect_refusal(command(tmp_path), "no valid checkpoint in")


def test_checkpoint_of_another_program_cannot_be_resumed(tmp_path: Path) -> None:
    file = next(PEER.glob("exps/*/*/official_adm/ckpt_75.pt"))
    expect_refusal(command(tmp_path, use_pretrained=file), "main.py cannot resume it")


def test_prepared_folder_with_other_tokens_than_its_description(tmp_path: Path) -> None:
    data = tmp_path / "data" / "mine"
    data.mkdir(parents=True)
    for name in ("train.bin", "val.bin"):
        np.arange(1000, dtype="<u2").tofile(data / name)
    (data / "meta.json").write_text(json.dumps({"splits": {"train": {"tokens": 5}}}))
    expect_refusal(
        command(tmp_path, data_dir=tmp_path / "data", dataset="mine", vocab_size=2000), "meta.json says 5"
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "--checkpoint is needed"),
        (["--checkpoint", "nowhere"], "no such file or folder"),
        (["--checkpoint", str(PEER)], "no ckpt.pt or ckpt_N.pt"),
        (["--checkpoint", str(PEER / "datasets/openwebtext2/val.bin")], "is not a valid checkpoint"),
        (
            ["--checkpoint", str(next(PEER.glob("exps/*/*/official_adm"))), "--data_dir", "/nowhere"],
            "is not prepared",
        ),
        (
            [
                "--checkpoint",
                str(next(PEER.glob("exps/*/*/official_adm"))),
                "--n_embd",
                "64",
                "--data_dir",
                str(PEER / "datasets"),
            ],
            "depth_emb.embs.weight is (1, 32) in the file, (1, 64) in this model",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_eval_refuses(words: list[str], said: str) -> None:
    expect_refusal([sys.executable, "eval.py", *words], said)


def test_unknown_flag_writes_nothing(tmp_path: Path) -> None:
    expect_refusal([sys.executable, "main.py", *flags(tmp_path), "--frobnicate"], "unknown flag --frobnicate")
    assert not list(tmp_path.iterdir())
