"""CORE: bundles that are read and refused, what is left out and cut, its rows in trainings, eval.py."""

from __future__ import annotations

import csv
import json
import signal
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import config
from data.tokenizer import BytePairs, Bytes, Characters
from data.vocabulary import Vocabulary
from distributed.world import World
from errors import UserError
from optim.core_bundle import read_bundle
from optim.core_metric import Core, core_evaluation, reach_of
from optim.core_tasks import Item, Task, centred, examples_of, is_right, spanned
from optim.fit import settings_of
from optim.reporting import charts
from optim.scoring import Scorer
from optim.selftest import differing
from optim.smoothed_loss import SmoothedLoss
from tests.core_bundles import TASKS, write_bundle
from tests.corpora import write_sources
from tests.helpers import tiny_args, tiny_model
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

WORLD = World(torch.device("cpu"))
SETTINGS = {
    "dataset": "wiki",
    "vocab_size": 256,
    "model": "base",
    "n_layer": 1,
    "n_layer_begin": 0,
    "n_layer_end": 0,
    "depth_embedding": None,
    "iterations": 10,
    "eval_freq": 4,
    "log_freq": 1,
    "save_checkpoint_freq": 3,
}
KIND = "eval@CORE"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With datasets, and a bundle."""
    found = tmp_path_factory.mktemp("core")
    write_sources(found / "datasets", {"wiki": 5000}, "bytes")
    write_bundle(found / "bundle")
    return found


@pytest.fixture(scope="module")
def settings(place: Path) -> dict[str, Any]:
    return {
        **SETTINGS,
        "data_dir": place / "datasets",
        "core_data": place / "bundle",
        "core_metric_every": 4,
        "core_metric_max_per_task": 6,
    }


@pytest.fixture(scope="module")
def measured(place: Path, settings: dict[str, Any]) -> Path:
    return trained(place / "measured", **settings)


def rows(results: Path) -> dict[int, dict[str, Any]]:
    return {row["step"]: row for row in metrics(results) if row["kind"] == KIND}


# bundles


@pytest.mark.parametrize("form", ["folder", "folder above", "zip", "zip of the folder"])
def test_a_bundle_may_have_several_forms(tmp_path: Path, form: str) -> None:
    content = write_bundle(tmp_path / "eval_bundle")
    path = {"folder": content, "folder above": tmp_path}.get(form, tmp_path / "bundle.zip")
    if form.startswith("zip"):
        root = content if form == "zip" else tmp_path
        with zipfile.ZipFile(path, "w") as file:
            for each in content.rglob("*"):
                file.write(each, each.relative_to(root))
    tasks = read_bundle(str(path), -1)
    assert [(task.label, task.kind, len(task.items)) for task in tasks] == [
        ("animals", "multiple_choice", 20),
        ("who", "schema", 5),
        ("last", "language_modeling", 4),
    ]
    assert [(task.num_fewshot, task.baseline, task.delimiter) for task in tasks] == [
        (2, 25.0, "\nAnswer: "),
        (0, 50.0, " "),
        (1, 0.0, " "),
    ]


def changed(number: int, **values: Any) -> list[dict[str, Any]]:
    """The tasks, one of them with other values; None leaves one out."""
    task = {key: value for key, value in {**TASKS[number], **values}.items() if value is not None}
    return [*TASKS[:number], task, *TASKS[number + 1 :]]


def line_of(number: int, text: str, name: str = "who.jsonl") -> Callable[[Path], object]:
    """Writes one line of a file anew."""

    def edit(bundle: Path) -> None:
        lines = (bundle / "eval_data" / name).read_text().splitlines()
        lines[number - 1] = text
        (bundle / "eval_data" / name).write_text("\n".join(lines))

    return edit


REFUSED: dict[str, tuple[Callable[[Path], object], str]] = {
    "no list of tasks": (lambda bundle: (bundle / "core.yaml").unlink(), "there is no core.yaml in it"),
    "no YAML": (lambda b: (b / "core.yaml").write_text("icl_tasks: [\n"), "it is no YAML (line 2)"),
    "code in YAML": (
        lambda b: (b / "core.yaml").write_text("icl_tasks: !!python/object/apply:os.getcwd []"),
        "it is no YAML",
    ),
    "empty YAML": (lambda b: (b / "core.yaml").write_text(""), "there is no list of tasks"),
    "YAML not in UTF-8": (lambda b: (b / "core.yaml").write_bytes(b"\xe9"), "it is no text in UTF-8"),
    "no tasks": (lambda b: write_bundle(b, []), "there is no list of tasks"),
    "a task that is a word": (lambda b: write_bundle(b, ["x"]), "task 1: it is no mapping"),
    "no label": (lambda b: write_bundle(b, changed(1, label=None)), "task 2: label must be a text"),
    "the same label": (lambda b: write_bundle(b, changed(1, label="animals")), "that of another task"),
    "unknown type": (
        lambda b: write_bundle(b, changed(1, icl_task_type="generation")),
        "task who: icl_task_type 'generation' is none of multiple_choice, schema, language_modeling",
    ),
    "delimiter": (lambda b: write_bundle(b, changed(1, continuation_delimiter=3)), "must be a text"),
    "examples": (lambda b: write_bundle(b, changed(1, num_fewshot=["ten"])), "num_fewshot must be a list"),
    "negative examples": (lambda b: write_bundle(b, changed(1, num_fewshot=[-1])), "num_fewshot must be a"),
    "too many examples": (
        lambda b: write_bundle(b, changed(1, num_fewshot=[5])),
        "task who: it has 5 items, too few for 5 examples (num_fewshot) of each",
    ),
    "missing file": (
        lambda b: write_bundle(b, changed(1, dataset_uri="gone.jsonl")),
        "eval_data/gone.jsonl: no such file",
    ),
    "empty file": (lambda b: (b / "eval_data" / "who.jsonl").write_text("\n"), "who.jsonl: it is empty"),
    "no JSON": (line_of(2, "{"), "who.jsonl, line 2: it is no JSON"),
    "no object": (line_of(2, "[1]"), "line 2: it is no JSON object"),
    "no text": (line_of(3, '{"context_options": ["a"], "gold": 0}'), "line 3: continuation must be a text"),
    "no options": (line_of(3, '{"continuation": "a", "gold": 0}'), "context_options must be a list of texts"),
    "no choices": (
        line_of(1, '{"query": "a", "choices": [], "gold": 0}', "words/animals.jsonl"),
        "choices must be a list of texts",
    ),
    "gold out of range": (
        line_of(1, '{"query": "a", "choices": ["b", "c"], "gold": 2}', "words/animals.jsonl"),
        "animals.jsonl, line 1: gold must be 0 to 1, not 2",
    ),
    "no gold": (
        line_of(1, '{"context_options": ["a"], "continuation": "b"}'),
        "gold must be 0 to 0, not None",
    ),
    "no context": (line_of(1, '{"continuation": "b"}', "last.jsonl"), "context must be a text"),
    "no baselines": (lambda b: (b / "eval_meta_data.csv").unlink(), "eval_meta_data.csv: no such file"),
    "no row of a baseline": (
        lambda b: (b / "eval_meta_data.csv").write_text("Eval Task,Random baseline\nwho,50\nlast,0\n"),
        "task animals: eval_meta_data.csv has no row for it",
    ),
    "no column of baselines": (lambda b: (b / "eval_meta_data.csv").write_text("a,b\n1,2\n"), "a row has no"),
    "baseline of 100": (
        lambda b: (b / "eval_meta_data.csv").write_text(
            "Eval Task,Random baseline\nanimals,25\nwho,100\nlast,0\n"
        ),
        "task who: its Random baseline in eval_meta_data.csv, '100', is no percentage below 100",
    ),
}


@pytest.mark.parametrize(("edit", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_a_bundle_that_cannot_be_used_is_one_line(
    tmp_path: Path, edit: Callable[[Path], object], reason: str
) -> None:
    edit(write_bundle(tmp_path))
    with pytest.raises(UserError) as refusal:
        read_bundle(str(tmp_path), -1)
    assert reason in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_every_task_that_cannot_be_used_has_a_line(tmp_path: Path) -> None:
    with pytest.raises(UserError) as refusal:
        read_bundle(str(write_bundle(tmp_path)), 1)
    assert str(refusal.value).splitlines() == [
        f"--core_data {tmp_path}: task {label}: it has 1 items with --core_metric_max_per_task 1, too few for"
        f" {count} examples (num_fewshot) of each"
        for label, count in (("animals", 2), ("last", 1))
    ]


@pytest.mark.parametrize("name", ["gone", "text.zip", "half.zip"])
def test_what_is_no_bundle_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / "text.zip").write_text("no zip")
    with zipfile.ZipFile(tmp_path / "half.zip", "w", zipfile.ZIP_STORED) as file:
        file.writestr("core.yaml", "icl_tasks: []")
    content = (tmp_path / "half.zip").read_bytes()
    (tmp_path / "half.zip").write_bytes(content.replace(b"icl_tasks", b"icl_tusks", 1))
    with pytest.raises(
        UserError, match=r"no such file|neither a folder nor a zip|cannot be unpacked"
    ) as refusal:
        read_bundle(str(tmp_path / name), -1)
    assert "\n" not in str(refusal.value)


# items


def task_of(kind: str, *items: Item, **values: Any) -> Task:
    return Task("task", kind, items, 0, 50.0, **values)


def scores_of(task: Task, tokenizer: Any = None, model: Any = None) -> Any:
    """The result of one task for a tiny model of 16 tokens."""
    model = model or tiny_model("base", vocab_size=256)
    args = tiny_args("base", vocab_size=256)
    result = Core([task], tokenizer or Bytes(), 256).measure(model, WORLD, args)
    assert result is not None
    return result


FINE = Item((("a", "b"), ("a", "c")))


@pytest.mark.parametrize(
    ("kind", "item"),
    [
        ("multiple_choice", Item((("a", "b"), ("a", "bc")))),
        ("multiple_choice", Item((("a", "b"), ("a", "b")))),
        ("multiple_choice", Item((("a", "b"),))),
        ("multiple_choice", Item((("a", 20 * "b"), ("a", "c")))),
        ("schema", Item((("a", "b"), ("a", "b")))),
        ("language_modeling", Item((("", "b"),))),
    ],
    ids=["prefix", "the same", "single", "too long", "the same context", "nothing before"],
)
def test_an_item_that_cannot_be_scored_is_left_out(kind: str, item: Item) -> None:
    good = FINE if kind == "multiple_choice" else Item((("x", "y"), ("z", "y")))
    score = scores_of(task_of(kind, item, good)).tasks["task"]
    assert (score.items, score.left_out, score.cut) == (2, 1, 0)
    assert score.accuracy in (0.0, 1.0)


def test_a_prompt_whose_tokens_change_with_the_continuation_is_left_out() -> None:
    tokenizer = BytePairs()
    prompts = [tokenizer.encode(text) for text in ("New Yor", "New York")]
    assert not spanned("language_modeling", prompts)[0].can_be_scored


def test_a_task_without_any_score_has_no_metric() -> None:
    result = scores_of(task_of("multiple_choice", Item((("a", "b"), ("a", "b")))))
    assert (result.tasks["task"].accuracy, result.core_metric) == (None, None)
    assert result.words().startswith("none")


def test_items_that_are_too_long_are_cut_and_said() -> None:
    long = Item(((30 * "a", "b"), (30 * "a", "c")))
    result = scores_of(task_of("multiple_choice", FINE, long))
    assert (result.tasks["task"].cut, result.tasks["task"].left_out) == (1, 0)
    assert result.notes(16) == ["CORE, task, 2 items: 1 longer than 16 tokens, and cut to their ends"]


def test_modern_blocks_take_longer_prompts() -> None:
    model = tiny_model("base", "--block", "modern", "--window_pattern", "SL", vocab_size=256)
    result = scores_of(task_of("multiple_choice", Item(((100 * "a", "b"), (100 * "a", "c")))), model=model)
    assert (reach_of(model.settings), result.tasks["task"].cut) == (160, 0)


def test_losses_that_are_not_finite_are_never_right() -> None:
    task = task_of("multiple_choice", FINE)
    assert not is_right(task, FINE, [float("nan"), 1.0], [True, True])


def test_of_equal_losses_the_first_is_taken() -> None:
    task = task_of("multiple_choice", FINE)
    assert is_right(task, FINE, [1.0, 1.0], [False, False])


def test_an_item_is_no_example_of_itself() -> None:
    for index in range(5):
        assert sorted(examples_of(index, 5, 4)) == [other for other in range(5) if other != index]


def test_guessing_scores_0_and_knowing_1() -> None:
    assert (centred(0.25, 25.0), centred(1.0, 25.0)) == (0.0, 1.0)


def test_texts_begin_with_the_end_of_text_token() -> None:
    core = Core([task_of("multiple_choice", FINE)], BytePairs(), 50257)
    assert [prompt.tokens[0] for prompt in core.prompts(core.tasks[0], 0)] == [50256, 50256]


def test_a_text_without_tokens_is_found_at_the_start() -> None:
    core = Core(
        [task_of("multiple_choice", FINE)], Characters(Vocabulary("characters", characters="\n ab")), 4
    )
    with pytest.raises(UserError, match="--core_data: task task: 'a c': the training data have no 'c'"):
        core.check_texts()


def test_a_tokenizer_that_is_larger_than_the_model_is_refused() -> None:
    with pytest.raises(UserError, match="the tokenizer has 256 tokens, and the model knows --vocab_size 100"):
        Core([], Bytes(), 100)


@pytest.mark.parametrize("most_tokens", [1, 40, 10_000])
def test_batches_do_not_change_scores(most_tokens: int) -> None:
    model = tiny_model("lncot", vocab_size=256)
    requests = [([1] * n, [2, 3]) for n in range(1, 12)]
    alone = [Scorer(model, WORLD.device, 1).loglikelihoods([request])[0] for request in requests]
    found = Scorer(model, WORLD.device, 1, most_tokens=most_tokens).loglikelihoods(requests)
    assert [total for total, _ in found] == pytest.approx([total for total, _ in alone], abs=1e-4)


def test_a_batch_has_at_most_so_many_tokens() -> None:
    scorer = Scorer(tiny_model("base"), WORLD.device, 1, most_tokens=20)
    assert list(scorer.batches([10, 30, 5, 9, 4])) == [[1], [0, 3], [2, 4]]


# trainings


def test_rows_are_of_every_so_many_steps_and_the_last(measured: Path) -> None:
    assert list(rows(measured)) == [4, 8, 10]


def test_a_row_has_the_metric_and_every_task(measured: Path) -> None:
    row = rows(measured)[8]
    assert list(row["core"]) == ["animals", "who", "last"]
    assert row["core_metric"] == pytest.approx(sum(each["centred"] for each in row["core"].values()) / 3)
    assert [each["items"] for each in row["core"].values()] == [6, 5, 4]


def test_every_task_has_a_chart(measured: Path) -> None:
    found = charts(rows(measured)[8])
    assert list(found) == [f"eval/CORE/{name}" for name in ("core_metric", "animals", "who", "last")]


def test_the_log_says_what_was_cut_once(measured: Path) -> None:
    log = (folder(measured) / "train.log").read_text()
    assert log.count("CORE at step") == 3
    assert log.count("note: CORE, animals, 6 items: 6 longer than 48 tokens, and cut to their ends") == 1
    assert log.count("note: CORE: texts begin with no end-of-text token") == 1


def test_core_leaves_no_trace(tmp_path: Path, settings: dict[str, Any], measured: Path) -> None:
    without = trained(tmp_path, **{**settings, "core_data": None, "core_metric_every": None})
    assert differing(final_state(without), final_state(measured)) == []
    assert metrics(without) == [row for row in metrics(measured) if row["kind"] != KIND]


@pytest.mark.slow
def test_core_of_a_model_that_draws_leaves_no_trace(tmp_path: Path, settings: dict[str, Any]) -> None:
    changes = {**settings, "model": "pondernet", "n_layer": 3, "n_layer_begin": 1, "n_layer_end": 1}
    with_core = trained(tmp_path / "a", **changes)
    without = trained(tmp_path / "b", **{**changes, "core_data": None})
    assert differing(final_state(without), final_state(with_core)) == []


def test_a_killed_run_has_the_rows_of_an_undisturbed_one(
    tmp_path: Path, settings: dict[str, Any], measured: Path
) -> None:
    process = start(command(tmp_path, **settings))
    wait_for_step(tmp_path, 8, process)
    process.kill()
    process.communicate()
    assert metrics(trained(tmp_path, **settings)) == metrics(measured)


@pytest.mark.slow
def test_a_stop_cuts_core_short_and_the_next_run_has_it(
    tmp_path: Path, settings: dict[str, Any], place: Path
) -> None:
    many = [{"context": f"{n} and {n} are ", "continuation": str(2 * n)} for n in range(2000)]
    changes = {
        **settings,
        "core_data": write_bundle(tmp_path / "bundle", last=many),
        "core_metric_max_per_task": -1,
        "iterations": 4,
    }
    process = start(command(tmp_path, **changes))
    wait_for_step(tmp_path, 4, process)  # the row before CORE
    process.send_signal(signal.SIGTERM)
    process.communicate()
    assert (process.returncode, rows(tmp_path)) == (STOPPED, {})
    trained(tmp_path, **changes)
    assert [row["core"]["last"]["items"] for row in rows(tmp_path).values()] == [2000]


@pytest.mark.slow
def test_two_processes_measure_the_same(tmp_path: Path, settings: dict[str, Any], measured: Path) -> None:
    assert rows(trained(tmp_path, processes=2, **settings)) == rows(measured)


def test_eval_measures_what_the_training_did(
    tmp_path: Path, settings: dict[str, Any], measured: Path
) -> None:
    words = [
        *("eval.py", "--checkpoint", folder(measured), "--data_dir", settings["data_dir"], "--device", "cpu"),
        *("--output_dir", tmp_path, "--core_data", settings["core_data"], "--core_metric_max_per_task", 6),
    ]
    outcome = run([*python(), *map(str, words)])
    assert outcome.returncode == 0, outcome.stderr
    summary = json.loads((tmp_path / "eval_summary_ckpt.json").read_text())
    row = rows(measured)[10]
    assert (summary["core_metric"], summary["core"]) == (row["core_metric"], row["core"])
    assert f"CORE               {row['core_metric']:.4f}, mean of 3 centred accuracies" in outcome.stdout
    with open(tmp_path / "eval_summary_ckpt_core.csv", newline="") as file:
        table = {line["task"]: line for line in csv.DictReader(file)}
    assert list(table) == ["animals", "who", "last", "CORE"]
    assert float(table["who"]["accuracy"]) == row["core"]["who"]["accuracy"]
    assert float(table["CORE"]["centred"]) == row["core_metric"]


def test_a_bundle_is_read_before_data_are_prepared(tmp_path: Path) -> None:
    outcome = train(tmp_path / "exps", data_dir=tmp_path, dataset="stdlib", core_data="gone")
    assert outcome.returncode == 2
    assert outcome.stderr == "main.py: error: --core_data gone: no such file or folder\n"
    assert not (tmp_path / "stdlib").exists()


def test_a_source_may_not_have_the_name_of_the_rows() -> None:
    args = config.add_defaults({"dataset": "CORE=1,b=1", "vocab_size": 256})
    with pytest.raises(UserError, match="a source of --dataset is named CORE"):
        core_evaluation(args, WORLD, [], {}, None)


def test_tokens_of_no_known_tokenizer_are_refused() -> None:
    args = config.add_defaults({"dataset": "mine", "vocab_size": 256})
    with pytest.raises(UserError, match="--core_data: --dataset mine does not say by which tokenizer"):
        core_evaluation(args, WORLD, [], {}, None)


@pytest.mark.parametrize(
    ("words", "note"),
    [
        (["--core_metric_every", "5"], "--core_metric_every has no effect: there is no --core_data"),
        (
            ["--core_metric_max_per_task", "5"],
            "--core_metric_max_per_task has no effect: there is no --core_data",
        ),
        (
            ["--core_data", "x", "--core_metric_every", "0"],
            "--core_data has no effect: --core_metric_every is 0",
        ),
        (["gpt", "--core-metric-every=5"], "--core_metric_every has no effect: there is no --core_data"),
    ],
)
def test_flags_without_effect_are_noted(words: list[str], note: str) -> None:
    assert note in config.unused_settings(config.parse_args(words))


def test_minus_1_is_never_in_the_recipe_gpt() -> None:
    args = config.parse_args(["gpt", "--core-metric-every", "-1"])
    assert args.core_metric_every == 0
    assert not any("core_metric" in note for note in config.unused_settings(args))


def test_a_python_training_has_no_core() -> None:
    with pytest.raises(UserError, match="unknown setting 'core_data'"):
        settings_of({"core_data": "x"})


def test_the_smoothed_loss_begins_anew_where_hooks_were_others() -> None:
    hook = SmoothedLoss(0)
    hook.take_up({})
    hook.add(2.0)
    assert hook.value == pytest.approx(2.0)
