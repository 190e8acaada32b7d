"""Rewards: the built-in verifiers, functions of the user's own, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import config
from errors import UserError
from optim.evaluations import split_name
from optim.rewards import reward_of, value_of


@pytest.mark.parametrize(
    ("name", "prompt", "completion", "answer", "expected"),
    [
        ("exact", "1+2=", "3", "3", 1.0),
        ("exact", "1+2=", " 3\n", "3", 1.0),
        ("exact", "1+2=", "33", "3", 0.0),
        ("exact", "1+2=", "", "3", 0.0),
        ("regex:^[0-9]+$", "1+2=", "12", None, 1.0),
        ("regex:^[0-9]+$", "1+2=", "12a", None, 0.0),
        ("regex:yes|no", "really?", "oh yes", None, 1.0),
        ("arithmetic", "12+34=", "46", None, 1.0),
        ("arithmetic", "12+34=", "it is 45, or 46", None, 1.0),
        ("arithmetic", "12+34=", "46 less 1 is 45", None, 0.0),
        ("arithmetic", "12+34=", "no number", None, 0.0),
        ("arithmetic", "what is 2*(3-5)?", "-4.0", None, 1.0),
        ("arithmetic", "a story", "so 1,200", "x = 1200", 1.0),
    ],
)
def test_a_verifier(name: str, prompt: str, completion: str, answer: str | None, expected: float) -> None:
    assert reward_of(name)(prompt, completion, answer) == expected


@pytest.mark.parametrize("text", ["no expression", "2**99999", "1/0=", "(" * 400, "1+" * 400 + "1", "()", ""])
def test_an_expression_without_a_value(text: str) -> None:
    assert value_of(text) is None


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module of the user's, with rewards that work and that do not."""
    (tmp_path / "their_rewards.py").write_text(
        "def short(prompt, completion, answer):\n    return 1 / (1 + len(completion))\n"
        "def words(prompt, completion, answer):\n    return 'much'\n"
        "def infinite(prompt, completion, answer):\n    return float('inf')\n"
        "def huge(prompt, completion, answer):\n    return 10**400\n"
        "def failing(prompt, completion, answer):\n    raise ValueError('a\\nb')\n"
        "number = 3\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "their_rewards"  # type: ignore[misc]
    sys.modules.pop("their_rewards", None)


def test_a_function_of_the_user(module: str) -> None:
    assert reward_of(f"{module}:short")("a", "bcd", None) == 0.25


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("exat", r"^--reward 'exat' must be exact, .*\(did you mean exact\?\)$"),
        ("regex:", r"^--reward regex: needs a pattern after the colon$"),
        ("regex:(", r"^--reward regex:\(: .*unterminated"),
        ("no_such_module:f", r"^--reward no_such_module:f: there is no module no_such_module$"),
        ("their_rewards:shrt", r"their_rewards has no shrt \(did you mean short\?\)$"),
        ("their_rewards:number", r"number is no function$"),
    ],
)
def test_a_reward_that_there_is_not(module: str, name: str, line: str) -> None:
    with pytest.raises(UserError, match=line):
        reward_of(name)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("exact", r"^--reward exact: prompt 'a': this example has no answer$"),
        ("arithmetic", r"^--reward arithmetic: prompt 'a': neither its answer nor its prompt"),
        ("their_rewards:words", r"must be a finite number, not 'much'$"),
        ("their_rewards:infinite", r"must be a finite number, not inf$"),
        ("their_rewards:huge", r"must be a finite number, not 1000000.*000$"),
        ("their_rewards:failing", r"the reward of prompt 'a' fails: ValueError: a$"),
    ],
)
def test_a_reward_that_fails_is_one_line(module: str, name: str, line: str) -> None:
    with pytest.raises(UserError, match=line) as failure:
        reward_of(name)("a", "b", None)
    assert len(str(failure.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("", "--reward is needed with --objective grpo"),
        (
            "--reward nonsense",
            "--reward 'nonsense' must be exact, arithmetic, regex:PATTERN or MODULE:FUNCTION",
        ),
        ("--reward regex:[", "--reward regex:[: unterminated character set at position 0"),
        (
            "--reward exact --completion_tokens 64",
            "--completion_tokens 64 leaves no room for prompts in --sequence_length 64",
        ),
        (
            "--reward exact --eval_samples 4 --pass_k 1 8",
            "--pass_k 8 needs as many completions: --eval_samples is 4",
        ),
    ],
)
def test_flags_of_grpo_that_cannot_work(words: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ending:
        config.parse_args(["--objective", "grpo", "--beta", "0", "--sequence_length", "64", *words.split()])
    said = capsys.readouterr().err.strip().splitlines()
    assert ending.value.code == 2 and len(said) == 1 and said[0].endswith(line), said


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("pass@1", ("pass@1", "")),
        ("pass@10@prompts", ("pass@10", "prompts")),
        ("final_pass@2@prompts", ("final_pass@2", "prompts")),
        ("reward@prompts", ("reward", "prompts")),
        ("val_loss@1", ("val_loss", "1")),
    ],
)
def test_quantities_whose_name_has_the_sign(text: str, parts: tuple[str, str]) -> None:
    assert split_name(text) == parts
