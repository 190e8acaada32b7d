"""Scores of token lists against a hand computation from logits; the harness's adapter; a local task from
end to end.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import downstream
from optim.checkpoint import save_checkpoint
from optim.scoring import Scorer, Window, windows
from tests.helpers import tiny_args, tiny_model, tokens
from tests.programs import run

CPU = torch.device("cpu")
BUDGET = ("--depth_embedding", "linear_learned", "--eval_length_factor", "0.6", "0.3")


@torch.no_grad()
def by_hand(model: Any, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """Of a continuation that fits: the context's left end is cut off."""
    row = (context + continuation)[-(model.settings.sequence_length + 1) :]
    logits = model(torch.tensor([row[:-1]]), get_logits=True)["logits"][0].double()
    logits, targets = logits[-len(continuation) :], torch.tensor(row[-len(continuation) :])
    return (
        logits.log_softmax(-1).gather(1, targets[:, None]).sum().item(),
        bool((logits.argmax(-1) == targets).all()),
    )


def requests(vocab: int = 64) -> list[tuple[list[int], list[int]]]:
    """Contexts and continuations of many lengths; some do not fit into 16 tokens together."""
    lengths = [(1, 1), (5, 2), (3, 9), (15, 1), (16, 1), (17, 1), (14, 8), (40, 5), (2, 16), (9, 16)]
    return [
        (tokens(a, seed=n, vocab=vocab).tolist(), tokens(b, seed=100 + n, vocab=vocab).tolist())
        for n, (a, b) in enumerate(lengths)
    ]


# what the harness is not needed for


def test_windows_score_each_token_once_with_as_much_context_as_fits() -> None:
    assert windows([1, 2], [3, 4], 4) == [Window([1, 2, 3, 4], 2)]
    assert windows([1, 2, 3], [4, 5], 3) == [Window([2, 3, 4, 5], 2)]  # cut from the left
    # as the harness's rolling windows: disjoint, and the last one keeps a full context
    assert windows([0], [1, 2, 3, 4, 5], 2) == [
        Window([0, 1, 2], 2),
        Window([2, 3, 4], 2),
        Window([3, 4, 5], 1),
    ]
    assert windows([0], [], 4) == []


@pytest.mark.parametrize(
    "flags",
    [
        ("base",),
        ("lncot",),
        ("adm", "--depth_embedding", "linear_learned"),
        ("adm", *BUDGET),
        ("but_mod", *BUDGET),
    ],
    ids=["base", "lncot", "adm", "adm budget", "but_mod budget"],
)
@pytest.mark.parametrize("batch_size", [1, 3, 50])
def test_loglikelihoods_are_those_of_the_logits(flags: tuple[str, ...], batch_size: int) -> None:
    model = tiny_model(*flags)
    found = Scorer(model, CPU, batch_size).loglikelihoods(requests())
    for (total, greedy), (context, continuation) in zip(found, requests(), strict=True):
        wanted, wanted_greedy = by_hand(model, context, continuation)
        assert total == pytest.approx(wanted, abs=2e-4) and greedy == wanted_greedy


def test_a_greedy_continuation_is_told_from_another() -> None:
    model = tiny_model("lncot")
    scorer = Scorer(model, CPU, 4)
    prompt = tokens(6).tolist()
    said = scorer.greedy([(prompt, 5)], lambda row, new: False)[0]
    other = [*said[:-1], (said[-1] + 1) % 64]
    assert [
        greedy for _, greedy in scorer.loglikelihoods([(prompt, said), (prompt, other), (prompt, [])])
    ] == [True, False, True]
    long = tokens(40).tolist()  # longer than the model's sequence: the sum over its pieces
    pieces = [by_hand(model, long[a : a + 1], long[a + 1 : a + 17]) for a in (0, 16)]
    last = by_hand(model, long[:33], long[33:])
    assert scorer.loglikelihoods([(long[:1], long[1:])])[0][0] == pytest.approx(
        sum(total for total, _ in pieces) + last[0], abs=2e-4
    )


@pytest.mark.parametrize("flags", [("lncot",), ("adm", *BUDGET)], ids=["lncot", "adm budget"])
@torch.no_grad()
def test_greedy_text_of_prompts_of_different_lengths(flags: tuple[str, ...]) -> None:
    model = tiny_model(*flags)
    prompts = [
        (tokens(length, seed=length).tolist(), most)
        for length, most in [(3, 6), (9, 4), (15, 5), (30, 3), (5, 0)]
    ]
    found = Scorer(model, CPU, 3).greedy(prompts, lambda row, new: row == 1 and len(new) == 2, vocabulary=50)
    assert [len(new) for new in found] == [6, 2, 5, 3, 0]
    for (prompt, _), new in zip(prompts, found, strict=True):
        for said, token in enumerate(new):
            seen = (prompt + new[:said])[-16:]
            assert token == model(torch.tensor([seen]), get_logits=True)["logits"][0, -1, :50].argmax()


def test_length_is_counted_without_spaces() -> None:
    # 8 letters against 10 with as many characters in all: -12/8 = -1.5 is worse than -14/10 = -1.4
    choices = [" a b c d e f g h", " abcdefghij     "]
    assert len(choices[0]) == len(choices[1])
    assert downstream.nospace_choice([-12.0, -14.0], choices) == 1
    assert downstream.nospace_choice([-13.0, -18.0], choices) == 0
    assert downstream.letters("  \n") == 1


def test_hits_of_examples() -> None:
    def sample(
        target: Any, *pairs: tuple[str, str], totals: tuple[float, ...] = (-12.0, -14.0)
    ) -> dict[str, Any]:
        return {
            "doc_id": 0,
            "target": target,
            "arguments": list(pairs),
            "filtered_resps": [(total, False) for total in totals],
        }

    pairs = ("q", " a b c d e f g h"), ("q", " abcdefghij     ")
    assert downstream.nospace_hits(
        [sample(1, *pairs), sample(0, *pairs), sample("abcdefghij", *pairs), sample([0, 1], *pairs)]
    ) == [1, 0, 1, 1]
    assert downstream.nospace_hits([sample(0, ("one", " x"), ("two", " x"))]) == []  # choices in the context
    assert (
        downstream.nospace_hits(
            [{"doc_id": 0, "target": "x", "arguments": [("q", {})], "filtered_resps": ["text"]}]
        )
        == []
    )
    assert downstream.mean_and_error([1.0, 0.0, 1.0, 1.0]) == (0.75, pytest.approx(0.25))
    assert downstream.mean_and_error([]) == (None, None)


def test_columns_of_the_paper() -> None:
    rows = {
        name: {"acc_norm_nospace": value}
        for name, value in [("mmlu", 0.25), ("arc_easy", 0.4), ("arc_challenge", 0.2), ("hellaswag", 0.27)]
    }
    assert downstream.paper_columns(rows) == [25, pytest.approx(30), 27, None, None]
    whole = downstream.paper_columns({**rows, "piqa": {"acc_norm_nospace": 0.58}})
    assert whole[-1] == pytest.approx((25 + 30 + 27 + 58) / 4)
    paper = {
        "columns": ["mmlu", "arc", "hellaswag", "piqa", "average"],
        "standard_24": [25.83, 29.34, 27.41, 58.54, 35.28],
    }
    text = downstream.paper_table(whole, paper)
    assert [line.split()[-1] for line in text.splitlines()] == ["average", "35.28", "35.00"]


def test_without_the_harness_one_line_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(SystemExit) as stop:
        downstream.main(["--checkpoint", "anything"])
    said = capsys.readouterr().err
    assert (
        stop.value.code == 2
        and "pip install -r requirements-downstream.txt" in said
        and len(said.splitlines()) == 1
    )


# with the harness


@pytest.fixture
def adapter(bpe_cache: Path) -> Any:
    pytest.importorskip("lm_eval")
    from data.tokenizer import BytePairs
    from optim.harness import CheckpointLM

    return CheckpointLM(Scorer(tiny_model("lncot", vocab_size=50304), CPU, 3), BytePairs())


def test_adapter_scores_text(adapter: Any) -> None:
    encode, model = adapter.tokenizer.encode, adapter.scorer.model
    pairs = [
        ("The cat", " sat"),
        ("", "Hello"),
        ("A trailing space ", "moves"),
        ("a long context " * 9 + "ends", " here <|endoftext|>"),
    ]
    found = adapter.loglikelihood([SimpleNamespace(args=pair) for pair in pairs], disable_tqdm=True)
    wanted = [
        (encode("The cat"), encode(" sat")),
        ([50256], encode("Hello")),
        (encode("A trailing space"), encode(" moves")),
        (encode(pairs[3][0]), encode(pairs[3][1])),
    ]
    assert len(wanted[3][1]) > 3  # the end of a document in a task's text is text
    for (total, greedy), (context, continuation) in zip(found, wanted, strict=True):
        assert (total, greedy) == (
            pytest.approx(by_hand(model, context, continuation)[0], abs=2e-4),
            by_hand(model, context, continuation)[1],
        )


def test_adapter_rolls_over_text_as_the_harness_does(adapter: Any) -> None:
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    text = (
        "A text that is a good deal longer than sixteen tokens, so that it is cut into pieces, of which the"
        " last is short."
    )
    pieces = map(make_disjoint_window, get_rolling_token_windows(adapter.tok_encode(text), 50256, 16, 1))
    wanted = sum(by_hand(adapter.scorer.model, context, continuation)[0] for context, continuation in pieces)
    assert adapter.loglikelihood_rolling([SimpleNamespace(args=(text,))], disable_tqdm=True) == [
        pytest.approx(wanted, abs=2e-4)
    ]


def test_adapter_generates_up_to_the_stop_string(adapter: Any) -> None:
    from errors import UserError

    def ask(prompt: str, **wishes: Any) -> str:
        return adapter.generate_until([SimpleNamespace(args=(prompt, wishes), task_name="t")])[0]

    whole = ask("Once upon", max_gen_toks=8)
    assert whole and adapter.tok_encode(whole) is not None
    stop = whole[len(whole) // 2]
    assert ask("Once upon", max_gen_toks=8, until=[stop]) == whole.split(stop)[0]
    assert ask("", max_gen_toks=2, until=stop) is not None
    with pytest.raises(UserError, match="greedy"):
        ask("Once upon", do_sample=True)


TASK = """
task: local_choices
dataset_path: json
dataset_kwargs:
  data_files:
    test: {folder}/rows.jsonl
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: answer
metric_list:
  - metric: acc
  - metric: acc_norm
"""


@pytest.fixture
def task(tmp_path: Path) -> Path:
    pytest.importorskip("lm_eval")
    choices = ["a number", "w h o  k n o w s", "no idea at all"]
    rows = [
        {"question": f"What is {n}? " + "word " * n, "choices": choices, "answer": n % 3} for n in range(7)
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "local.yaml").write_text(TASK.format(folder=tmp_path))
    return tmp_path


@pytest.mark.slow
def test_local_task_from_end_to_end(task: Path, bpe_cache: Path) -> None:
    model = tiny_model("lncot", vocab_size=50304)
    args = tiny_args("lncot", vocab_size=50304)
    save_checkpoint(task / "ckpt.pt", {"model": model.state_dict(), "args": vars(args), "itr": 0})
    words = [
        sys.executable,
        "downstream.py",
        "--checkpoint",
        str(task / "ckpt.pt"),
        "--include_path",
        str(task),
        "--device",
        "cpu",
    ]
    environment = {"HF_HOME": str(task / "home"), "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    outcome = run([*words, "--tasks", "local_choices"], **environment)
    assert outcome.returncode == 0, outcome.stderr
    row = json.loads((task / "downstream_ckpt.json").read_text())["tasks"]["local_choices"]
    hits: dict[str, list[bool]] = {"acc": [], "acc_norm": [], "acc_norm_nospace": []}
    from data.bpe import gpt2

    encode = gpt2().encode_ordinary
    for line in (task / "rows.jsonl").read_text().splitlines():
        doc = json.loads(line)
        totals = [
            by_hand(model, encode(doc["question"] + "\nAnswer:"), encode(" " + choice))[0]
            for choice in doc["choices"]
        ]
        for metric, lengths in [
            ("acc", [1, 1, 1]),
            ("acc_norm", [len(choice) for choice in doc["choices"]]),
            ("acc_norm_nospace", [len(choice.replace(" ", "")) for choice in doc["choices"]]),
        ]:
            scores = [total / length for total, length in zip(totals, lengths, strict=True)]
            hits[metric].append(scores.index(max(scores)) == doc["answer"])
    assert row["examples"] == 7
    for metric, found in hits.items():
        mean, error = downstream.mean_and_error([float(hit) for hit in found])
        assert (row[metric], row[f"{metric}_stderr"]) == (pytest.approx(mean), pytest.approx(error))
    assert "local_choices" in outcome.stdout
    for wrong, said in [("local_choice", "did you mean local_choices?"), ("piqa", "HF_DATASETS_OFFLINE")]:
        refused = run([*words, "--tasks", wrong], **environment)
        assert refused.returncode == 2 and said in refused.stderr.splitlines()[-1], refused.stderr
        assert "Traceback" not in refused.stderr


@pytest.mark.slow
def test_the_harness_scores_an_export_as_downstream_does_without_a_network(
    task: Path, bpe_cache: Path
) -> None:
    pytest.importorskip("transformers")
    args = tiny_args("lncot", vocab_size=50304, sequence_length=32)
    model = tiny_model("lncot", vocab_size=50304, sequence_length=32)
    save_checkpoint(task / "ckpt.pt", {"model": model.state_dict(), "args": vars(args), "itr": 0})
    offline = {"HF_HOME": str(task / "home"), "HF_DATASETS_OFFLINE": "1", "HF_HUB_OFFLINE": "1"}
    exported = run(
        [
            sys.executable,
            "-m",
            "models.export",
            str(task / "ckpt.pt"),
            str(task / "exported"),
            "--tokenizer",
            "gpt2",
        ]
    )
    assert exported.returncode == 0, exported.stderr
    ours = run(
        [
            sys.executable,
            "downstream.py",
            "--checkpoint",
            str(task / "ckpt.pt"),
            "--include_path",
            str(task),
            "--device",
            "cpu",
            "--tasks",
            "local_choices",
        ],
        **offline,
    )
    assert ours.returncode == 0, ours.stderr
    theirs = run(
        [
            sys.executable,
            "-m",
            "lm_eval",
            "run",
            "--model",
            "hf",
            "--model_args",
            f"pretrained={task / 'exported'},trust_remote_code=True",
            "--tasks",
            "local_choices",
            "--include_path",
            str(task),
            "--device",
            "cpu",
            "--batch_size",
            "4",
            "--output_path",
            str(task / "theirs.json"),
            "--log_samples",
        ],
        **offline,
    )
    assert theirs.returncode == 0, theirs.stderr
    found = json.loads(next(task.glob("theirs*.json")).read_text())["results"]["local_choices"]
    row = json.loads((task / "downstream_ckpt.json").read_text())["tasks"]["local_choices"]
    assert (found["acc,none"], found["acc_norm,none"]) == (
        pytest.approx(row["acc"]),
        pytest.approx(row["acc_norm"]),
    )
