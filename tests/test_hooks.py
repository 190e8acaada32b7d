"""What watches a training: early stopping, the budget, layer norms, exports, health, hooks of the user's;
they survive kills and resumes, and leave the training as it is.
"""

from __future__ import annotations

import csv
import math
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import config
from errors import UserError
from files import load_json
from optim.chosen_hooks import hook_of
from optim.early_stopping import EarlyStopping
from optim.exports import as_csv
from optim.health import host, of_gpu
from optim.hooks import Hook, by_name
from optim.layer_norms import attention_entropy, effective_rank, in_order, layer_of
from optim.monitors import FLOPCounter, MetricsLogger, ThroughputMonitor, ValTracker
from optim.selftest import differing
from tests.programs import (
    ROOT,
    command,
    final_state,
    folder,
    metrics,
    run,
    start,
    train,
    trained,
    wait_for_step,
)
from tests.test_fit import Scripted, StopAt
from tests.test_fit import train as fitted

SETTINGS = {
    "model": "lncot",
    "n_repeat": 2,
    "depth_embedding": None,
    "iterations": 30,
    "eval_freq": 2,
    "eval_batches": 1,
    "log_freq": 1,
    "save_checkpoint_freq": 3,
    "track": "val_loss",
}
STOPPING = {"early_stop": "4:1000", "csv": "on", "layer_norms": 4}  # nothing improves by that much
USERS = """
from pathlib import Path
import distributed
from optim.hooks import Hook, Stop


class Seen(Hook):
    def joined(self, run):
        self.place = Path(__file__).with_name(f"seen_{run.world.rank}")

    def stepped(self, step, loss):
        self.place.write_text(str(step))


class Needs(Hook):
    def __init__(self, number):
        pass


class Other: ...


def function(): ...
"""


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("undisturbed"), **SETTINGS, **STOPPING)


@pytest.fixture(scope="module")
def disturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Killed once on the way."""
    results = tmp_path_factory.mktemp("disturbed")
    process = start(command(results, **SETTINGS, **STOPPING))
    wait_for_step(results, 7, process)
    process.kill()
    process.communicate()
    return trained(results, **SETTINGS, **STOPPING)


def rows_of_csv(results: Path) -> list[dict[str, str]]:
    with open(folder(results) / "metrics.csv", newline="") as file:
        return list(csv.DictReader(file))


# early stopping


def test_evaluations_are_counted_not_steps(undisturbed: Path) -> None:
    outcome = load_json(folder(undisturbed) / "outcome.json")
    assert (outcome["step"], outcome["kind"], outcome["code"]) == (10, "complete", 0)


@pytest.mark.slow
def test_a_killed_run_stops_at_the_same_step_with_the_same_bits(undisturbed: Path, disturbed: Path) -> None:
    assert metrics(disturbed) == metrics(undisturbed)
    assert differing(final_state(disturbed), final_state(undisturbed)) == []


@pytest.mark.slow
def test_the_best_checkpoint_survives_a_kill(undisturbed: Path, disturbed: Path) -> None:
    best = [final_state(results, "best.pt") for results in (undisturbed, disturbed)]
    assert differing(*best) == []


def test_a_run_that_was_stopped_early_is_finished(undisturbed: Path) -> None:
    assert "is finished already" in train(undisturbed, **SETTINGS, **STOPPING).stdout


def stops_at(place: Path, *runs: list[Hook], values: list[float]) -> int:
    """The last step of a training in several runs, evaluated every third of 12 steps."""
    for hooks in runs:
        fitted(place, evaluations=[Scripted(values, 3)], hooks=hooks, eval_freq=3)
    return load_json(place / "summary.json")["itr"]


def patient(patience: int, min_delta: float = 0.1) -> EarlyStopping:
    return EarlyStopping(patience, min_delta, "score@script")


CURVE = [2.0, 2.05, 1.95, 0.0]


@pytest.mark.parametrize("pauses", [[], [3], [4], [6], [4, 7]])
def test_pauses_leave_no_trace(tmp_path: Path, pauses: list[int]) -> None:
    runs = [[patient(2), StopAt("pause", step)] for step in pauses]
    assert stops_at(tmp_path, *runs, [patient(2)], values=CURVE) == 9


def test_stopping_given_later_knows_the_evaluations_before(tmp_path: Path) -> None:
    assert stops_at(tmp_path, [StopAt("pause", 7)], [patient(1)], values=[1.0, 0.5, 0.5, 0.1]) == 9


def test_another_delta_counts_anew(tmp_path: Path) -> None:
    values = [3.0, 2.0, 1.0, 0.0]
    assert stops_at(tmp_path, [patient(3, 0.1), StopAt("pause", 7)], [patient(3, 5.0)], values=values) == 12
    assert load_json(tmp_path / "outcome.json")["kind"] == "complete"


def test_nothing_measured_is_refused() -> None:
    with pytest.raises(UserError, match="early stopping by val_loss: nothing measures that"):
        fitted(None, hooks=[EarlyStopping()])


def test_a_flag_is_a_setting_of_fit(tmp_path: Path) -> None:
    settings = {"early_stop": "1:0", "track": "score@script", "eval_freq": 3, "csv": True}
    fitted(tmp_path, evaluations=[Scripted([1.0, 1.0], 3)], **settings)
    assert load_json(tmp_path / "summary.json")["itr"] == 6
    assert (tmp_path / "metrics.csv").exists()


# budget


@pytest.mark.parametrize("runs", [[], [5], [3, 6]])
def test_a_budget_ends_the_training_whatever_it_was_cut_into(tmp_path: Path, runs: list[int]) -> None:
    for step in runs:
        fitted(tmp_path, hooks=[FLOPCounter(3.0, flop_budget=22.0), StopAt("pause", step)])
    fitted(tmp_path, hooks=[FLOPCounter(3.0, flop_budget=22.0)])
    assert load_json(tmp_path / "summary.json")["itr"] == 8


def test_a_budget_given_later_counts_all_steps(tmp_path: Path) -> None:
    fitted(tmp_path, hooks=[StopAt("pause", 5)])
    fitted(tmp_path, hooks=[FLOPCounter(3.0, flop_budget=22.0)])
    assert load_json(tmp_path / "summary.json")["itr"] == 8


def test_a_budget_that_is_used_up_takes_no_step(tmp_path: Path) -> None:
    fitted(tmp_path, hooks=[StopAt("pause", 5)])
    fitted(tmp_path, hooks=[FLOPCounter(3.0, flop_budget=9.0)])
    assert load_json(tmp_path / "summary.json")["itr"] == 5


def test_unknown_work_cannot_be_budgeted() -> None:
    with pytest.raises(UserError, match="floating-point operations of a step are not known"):
        fitted(None, flop_budget=1e9)


@pytest.mark.slow
def test_two_processes_share_a_budget_and_call_hooks_of_the_users(tmp_path: Path) -> None:
    (tmp_path / "users.py").write_text(USERS)
    changes = {**SETTINGS, "track": None, "eval_freq": 0, "flop_budget": "1e9", "layer_norms": 2}
    words = command(tmp_path / "exps", processes=2, **changes, hook="users:Seen")
    outcome = run(words, PYTHONPATH=str(tmp_path))
    assert outcome.returncode == 0, outcome.stderr
    flops = [row["total_flops"] for row in metrics(tmp_path / "exps") if row["kind"] == "flops"]
    assert flops[-2] < 1e9 <= flops[-1] == pytest.approx(len(flops) * flops[0])
    assert {path.read_text() for path in tmp_path.glob("seen_*")} == {str(len(flops))}
    layers = [row["step"] for row in metrics(tmp_path / "exps") if row["kind"] == "layers"]
    assert layers == list(range(2, len(flops) + 1, 2))


# layers


@pytest.mark.slow
def test_norms_of_layers_leave_the_training_as_it_is(tmp_path: Path, undisturbed: Path) -> None:
    without = trained(tmp_path, **SETTINGS, early_stop="4:1000")
    changed = differing(final_state(without), final_state(undisturbed))
    assert [name for name in changed if not name.startswith("/hooks")] == []


@pytest.mark.slow
@pytest.mark.parametrize("model", ["adm", "pondernet"])
def test_models_that_draw_are_left_as_they_are(tmp_path: Path, model: str) -> None:
    changes = {**SETTINGS, "model": model, "iterations": 5, "track": None}
    without = trained(tmp_path / "a", **changes)
    with_norms = trained(tmp_path / "b", **changes, layer_norms=2)
    changed = differing(final_state(without), final_state(with_norms))
    assert [name for name in changed if not name.startswith("/hooks")] == []


def test_a_row_has_the_norms_of_all_layers(undisturbed: Path) -> None:
    row = next(row for row in metrics(undisturbed) if row["kind"] == "layers")
    blocks = ["transformer.h_begin.0", "transformer.h_end.0", "transformer.h_mid.0"]
    for name in ("gradient_norm", "weight_norm", "effective_rank"):
        assert [layer for layer in row[name] if layer in blocks] == blocks
    assert "transformer.h_mid.0@2" in row["activation_norm"]
    assert set(row["attention_entropy"]) == {*blocks[:2], "transformer.h_mid.0@1", "transformer.h_mid.0@2"}


def test_norms_of_layers_are_those_of_the_whole_gradient(undisturbed: Path) -> None:
    rows = {row["kind"]: row for row in metrics(undisturbed) if row["step"] == 4}
    whole = math.hypot(*rows["layers"]["gradient_norm"].values())
    assert whole == pytest.approx(rows["train"]["grad_norm"], rel=1e-5)


def test_layers_are_sorted_as_numbers() -> None:
    assert sorted(["h.10", "h.2", "h.2@10", "h.2@9"], key=in_order) == ["h.2", "h.2@9", "h.2@10", "h.10"]


@pytest.mark.parametrize(
    ("parameter", "layer"),
    [
        ("transformer.h.3.attn.c_attn.weight", "transformer.h.3"),
        ("transformer.wte.weight", "transformer.wte"),
        ("0.weight", "0"),
        ("resid_lambdas", "resid_lambdas"),
    ],
)
def test_a_layer_ends_with_the_last_number(parameter: str, layer: str) -> None:
    assert layer_of(parameter) == layer


def test_attention_to_all_keys_alike_has_the_logarithm_of_their_number() -> None:
    q, k = torch.zeros(2, 4, 3, 8), torch.randn(2, 2, 3, 8)
    expected = (math.log(1) + math.log(2) + math.log(3)) / 3
    assert attention_entropy(q, [(k, k)], None) == pytest.approx(expected)


def test_the_effective_rank_of_zeros_is_0() -> None:
    assert effective_rank(torch.zeros(3, 4)) == 0.0


# exports and health


@pytest.mark.slow
def test_a_resume_leaves_no_row_twice(disturbed: Path) -> None:
    of_json = [(row["kind"], str(row["step"])) for row in metrics(disturbed)]
    of_csv = [(row["kind"], row["step"]) for row in rows_of_csv(disturbed)]
    assert sorted(of_csv) == sorted(of_json)


def test_a_table_has_the_columns_of_all_rows() -> None:
    rows = [{"kind": "a", "step": 1, "x": {"y": 2.5}}, {"kind": "b", "step": 1, "z": [1, None], "w": None}]
    assert as_csv(rows) == 'kind,step,x.y,z,w\na,1,2.5,,\nb,1,,"[1, null]",\n'


def test_an_export_that_cannot_be_written_ends_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.csv").mkdir()
    fitted(tmp_path, csv=True)
    assert load_json(tmp_path / "summary.json")["itr"] == 12
    assert "warning: no export by MetricsCsv: Is a directory" in capsys.readouterr().out


def test_event_files_have_every_number_once(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fitted(tmp_path, tensorboard=True, hooks=[StopAt("pause", 5)])
    fitted(tmp_path, tensorboard=True)
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == list(range(1, 13))


def test_a_missing_package_is_one_line(tmp_path: Path) -> None:
    try:
        import tensorboard  # noqa: F401
    except ImportError:
        outcome = train(tmp_path / "exps", **SETTINGS, tensorboard="on")
        assert outcome.returncode == 2
        assert outcome.stderr == (
            "main.py: error: --tensorboard: the tensorboard package is not installed; pip install -r"
            " requirements-tensorboard.txt\n"
        )
        assert not (tmp_path / "exps").exists()


def test_a_gpu_says_what_it_knows() -> None:
    found = of_gpu("41, [N/A], 1024, 81559, 7\n")
    assert found == {
        "gpu_temperature_c": 41.0,
        "gpu_memory_used_mib": 1024.0,
        "gpu_memory_mib": 81559.0,
        "gpu_utilisation_percent": 7.0,
    }


def test_a_row_of_health_every_so_many_log_lines() -> None:
    rows = fitted(None, log_freq=2, health=3)
    assert [row["step"] for row in rows if row["kind"] == "health"] == [6, 12]
    assert host().keys() <= {*rows[-1]["time"], *rows[-2]["time"]}


# monitors


def test_monitors_write_rows_and_a_logger_says_them(capsys: pytest.CaptureFixture[str]) -> None:
    monitors = [ThroughputMonitor(4), FLOPCounter(2e12, 4, hardware_peak_tflops=1e6)]
    rows = fitted(None, hooks=[*monitors, MetricsLogger(6)], log_freq=0)
    assert [row["tokens_processed"] for row in rows if row["kind"] == "throughput"] == [32, 64, 96]
    assert [row["total_flops"] for row in rows if row["kind"] == "flops"] == [8e12, 16e12, 24e12]
    assert "step 12  loss " in capsys.readouterr().out


def test_a_pause_at_an_evaluation_is_not_lost_on_the_best(tmp_path: Path) -> None:
    trackers = [ValTracker("score"), ValTracker("score")]
    script = Scripted([5.0, 3.0, 1.0, 2.0, 2.0, 2.0], 3)  # before the first step, at 3, 6, ...
    fitted(tmp_path, evaluations=[script], hooks=[trackers[0], StopAt("pause", 6)], eval_freq=3)
    fitted(tmp_path, evaluations=[script], hooks=[trackers[1]], eval_freq=3)
    assert (trackers[1].init, trackers[1].best) == (5.0, 1.0)


class Counts(Hook):
    def __init__(self) -> None:
        self.count = 0

    def stepped(self, step: int, loss: float) -> None:
        self.count += 1

    def state(self) -> dict[str, Any]:
        return {"count": self.count}

    def take_up(self, state: Any) -> None:
        self.count = state["count"]


def test_states_are_kept_by_name(tmp_path: Path) -> None:
    fitted(tmp_path, hooks=[Counts(), StopAt("pause", 5)])
    counts = Counts()
    fitted(tmp_path, hooks=[FLOPCounter(1.0), counts])
    assert counts.count == 12


def test_two_hooks_of_a_class_have_two_names() -> None:
    assert list(by_name([Counts(), Hook(), Counts()])) == ["Counts", "Hook", "Counts.2"]


# hooks of the user's


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("users_a:Sen", "users_a has no Sen (did you mean Seen?)"),
        ("users_a:Other", "Other is no subclass of optim.hooks.Hook"),
        ("users_a:function", "function is no subclass of optim.hooks.Hook"),
        ("users_a:Needs", "Needs() fails: TypeError: "),
        ("users_b:Seen", "importing users_b fails: SyntaxError: "),
        ("users_c:Seen", "there is no module users_c"),
        ("users_d:Seen", "importing users_d fails: ZeroDivisionError: division by zero"),
        ("users_e:Seen", "there is no module of_nobody"),
    ],
)
def test_a_hook_that_cannot_be_had_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    texts = {"a": USERS, "b": "class", "d": "1 / 0", "e": "import of_nobody"}
    for letter, text in texts.items():
        (tmp_path / f"users_{letter}.py").write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(UserError) as refusal:
        hook_of(name)
    assert str(refusal.value).startswith(f"--hook {name}: {reason}")
    assert "\n" not in str(refusal.value)


def test_a_refused_hook_leaves_no_folder(tmp_path: Path) -> None:
    outcome = train(tmp_path / "exps", **SETTINGS, hook="nowhere:Seen")
    assert outcome.returncode == 2
    assert outcome.stderr == "main.py: error: --hook nowhere:Seen: there is no module nowhere\n"
    assert not (tmp_path / "exps").exists()


def test_hooks_given_twice_are_both_meant() -> None:
    assert config.parse_args(["--hook", "a:B", "c:D", "--hook", "e:F"]).hook == ["a:B", "c:D", "e:F"]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["--early_stop", "5"], "--early_stop must be PATIENCE:DELTA"),
        (["--early_stop", "0:0.1"], "--early_stop must be PATIENCE:DELTA"),
        (["--early_stop", "3:-1"], "--early_stop must be PATIENCE:DELTA"),
        (["--early_stop", "3:nan"], "--early_stop must be PATIENCE:DELTA"),
        (["--early_stop", "x:y"], "--early_stop must be PATIENCE:DELTA"),
        (["--early_stop", "3:0", "--eval_freq", "0"], "--early_stop needs evaluations during training"),
        (["--early_stop", "3:0", "--dataset", "a=0.5,b=0.5"], "--early_stop needs --track on a mixture"),
        (["--flop_budget", "0"], "--flop_budget must be at least 1"),
        (["--flop_budget", "much"], "--flop_budget must be a number"),
        (["--layer_norms", "-1"], "--layer_norms must be at least 0"),
        (["--health", "2", "--log_freq", "0"], "--health counts log lines"),
        (["--hook", "module"], "--hook 'module' must be MODULE:CLASS"),
        (["--hook", "a b:C"], "--hook 'a b:C' must be MODULE:CLASS"),
        (["--hook"], "--hook needs a value"),
    ],
)
def test_bad_flags_are_one_line(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exit:
        config.parse_args(words)
    (said,) = capsys.readouterr().err.splitlines()
    assert exit.value.code == 2 and line in said


def test_names_of_experiments_do_not_change() -> None:
    flags = ["--early_stop", "5:0.1", "--flop_budget", "1e9", "--layer_norms", "5", "--csv", "--hook", "a:B"]
    folders = [config.experiment_folder(config.parse_args(words)) for words in ([], flags)]
    assert folders[0] == folders[1]


@pytest.mark.parametrize("number", range(1, 7))
def test_examples_of_the_page_run(number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each after the first."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "library-hooks.md").read_text(), re.DOTALL)
    assert len(blocks) == 7
    names: dict[str, Any] = {}
    for block in (blocks[0], blocks[number]):
        exec(block, names)
