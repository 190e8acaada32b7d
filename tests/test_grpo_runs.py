"""grpo with main.py: killed and resumed, on two processes, rewards that fail, rollouts that last, eval.py."""

from __future__ import annotations

import json
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from optim.selftest import differing
from tests.programs import (
    STOPPED,
    command,
    final_state,
    folder,
    metrics,
    python,
    run,
    start,
    train,
    trained,
    wait_for_step,
)
from tests.tuned import SMALL, sums

pytestmark = pytest.mark.slow
DIGIT = "regex:^[^a-z]*$"  # which some completions of random weights pass
GROUPS = {"batch_size": 2, "group_size": 3, "completion_tokens": 4, "eval_samples": 2, "pass_k": [1, 2]}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sums(tmp_path_factory.mktemp("sums"))


def settings(data: Path, begin: Path | None = None, **changes: Any) -> dict[str, Any]:
    """Of a model with routers, where it begins with weights (and a reference); else as small as can be."""
    own: dict[str, Any] = {"beta": 0}
    if begin is not None:
        routed = {"model": "adm", "n_layer": 3, "n_layer_begin": 1, "n_layer_end": 1, "n_repeat": 2}
        own = {**routed, "dropout": 0.1, "init_from": begin}
    grpo = {"objective": "grpo", "dataset": "prompts", "reward": DIGIT, "track": "pass@2"}
    return {**SMALL, **GROUPS, **grpo, "data_dir": data, "iterations": 12, **own, **changes}


@pytest.fixture(scope="module")
def tuned(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an sft, from which grpo begins."""
    flags = {**settings(data, data), "objective": "sft", "dataset": "chat", "init_from": None, "track": None}
    return folder(trained(tmp_path_factory.mktemp("sft"), **{**flags, "iterations": 2, "eval_freq": 0}))


@pytest.fixture(scope="module")
def unbroken(data: Path, tuned: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of a training that nobody disturbed."""
    return trained(tmp_path_factory.mktemp("grpo"), **settings(data, tuned))


def test_a_killed_training_ends_with_the_same_bits(
    data: Path, tuned: Path, unbroken: Path, tmp_path: Path
) -> None:
    words = command(tmp_path, **settings(data, tuned))
    process = start(words)
    wait_for_step(tmp_path, 7, process)
    process.kill()
    process.communicate(timeout=60)
    assert run(words).returncode == 0
    assert differing(final_state(unbroken), final_state(tmp_path)) == []
    assert metrics(unbroken) == metrics(tmp_path)


def test_rows_and_summary_have_rewards(unbroken: Path) -> None:
    rows, summary = metrics(unbroken), json.loads((folder(unbroken) / "summary.json").read_text())
    assert sum(row["kind"] == "rollouts" for row in rows) == 12
    final = next(row for row in rows if row["kind"] == "final@prompts")
    assert final["n_prompts"] == 14 and final["pass@1"] <= final["pass@2"]
    assert summary["final_pass@2@prompts"] == final["pass@2"]
    assert summary["best"]["quantity"] == "pass@2@prompts" and (folder(unbroken) / "best.pt").is_file()


def test_two_processes_draw_what_one_draws(data: Path, tuned: Path, unbroken: Path, tmp_path: Path) -> None:
    trained(tmp_path, 2, **settings(data, tuned))
    one, two = metrics(unbroken), metrics(tmp_path)
    assert [row["kind"] for row in one] == [row["kind"] for row in two]
    names = {"loss", "reward", "length", "ended", "k3", "pass@1"}
    for mine, others in zip(one, two, strict=True):
        for name in mine.keys() & names:
            assert mine[name] == pytest.approx(others[name], abs=1e-4)


def test_eval_of_a_checkpoint_is_that_of_its_training(unbroken: Path) -> None:
    outcome = run([*python(), "eval.py", "--checkpoint", str(folder(unbroken)), "--device", "cpu"])
    assert outcome.returncode == 0, outcome.stderr
    summary = json.loads((folder(unbroken) / "eval_summary_ckpt.json").read_text())
    final = next(row for row in metrics(unbroken) if row["kind"] == "final@prompts")
    for name in ("reward", "pass@1", "pass@2", "ended", "length", "n_prompts"):
        assert summary[name] == final[name]


@pytest.mark.parametrize("processes", [1, 2])
def test_a_reward_that_fails_in_the_middle_is_one_line(data: Path, tmp_path: Path, processes: int) -> None:
    (tmp_path / "late_reward.py").write_text(
        "calls = []\n\ndef reward(prompt, completion, answer):\n    calls.append(1)\n"
        "    return 1 / (40 - len(calls))\n"
    )
    words = command(
        tmp_path, processes, **settings(data, reward="late_reward:reward", track=None, eval_freq=0)
    )
    outcome = run(words, PYTHONPATH=str(tmp_path))
    lines = [line for line in outcome.stderr.splitlines() if "ZeroDivisionError" in line]
    assert outcome.returncode != 0 and "Traceback (most recent" not in outcome.stderr.split("torch")[0]
    assert lines and all("--reward late_reward:reward: the reward of prompt '" in line for line in lines)
    assert json.loads((folder(tmp_path) / "outcome.json").read_text())["code"] == 2


@pytest.mark.parametrize("wanted", ["no_such_module:f", "math:hypo"])
def test_a_reward_that_there_is_not_is_refused_before_anything_is_trained(
    data: Path, tmp_path: Path, wanted: str
) -> None:
    outcome = train(tmp_path, **settings(data, reward=wanted))
    assert outcome.returncode == 2
    (line,) = [line for line in outcome.stderr.splitlines() if "error:" in line]
    assert f"--reward {wanted}: " in line and not list(tmp_path.glob("*/*/run/*.pt"))


def test_a_long_rollout_is_no_hang_and_ctrl_c_ends_it_after_the_step(data: Path, tmp_path: Path) -> None:
    (tmp_path / "slow_reward.py").write_text(
        "import time\n\ndef reward(prompt, completion, answer):\n    time.sleep(0.3)\n    return 0\n"
    )
    flags = settings(data, reward="slow_reward:reward", track=None, eval_freq=0, acc_steps=1)
    # 6 rewards of a step: longer than the watchdog allows without a sign of life
    process = start(command(tmp_path, **flags, watchdog_minutes=0.02), PYTHONPATH=str(tmp_path))
    wait_for_step(tmp_path, 1, process)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == STOPPED and "watchdog" not in said and "stopping after this step" in said
