"""What a process makes of the launcher's variables, and how it ends beside others."""

from __future__ import annotations

import subprocess
import sys

import pytest

from distributed.launch import launched_world_size
from errors import UserError
from tests.programs import ROOT

NAMES = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")
WHOLE = dict(zip(NAMES, ("2", "1", "1", "localhost", "29500"), strict=True))


def set_launcher(monkeypatch: pytest.MonkeyPatch, values: dict[str, str]) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)


@pytest.mark.parametrize("missing", NAMES)
def test_an_environment_that_is_half_of_a_launchers_is_one_line(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    set_launcher(monkeypatch, {name: value for name, value in WHOLE.items() if name != missing})
    with pytest.raises(UserError, match="torchrun did not start this process; unset ") as refusal:
        launched_world_size()
    assert missing in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "values",
    [
        {"RANK": "1"},
        {"LOCAL_RANK": "3"},
        {"RANK": ""},
        {"WORLD_SIZE": ""},
        {"WORLD_SIZE": "two"},
        {"RANK": "-1"},
        {**WHOLE, "RANK": "2"},
        {"WORLD_SIZE": "0"},
        {"WORLD_SIZE": "\N{SUPERSCRIPT TWO}"},
    ],
    ids=str,
)
def test_variables_that_make_no_sense_are_one_line(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, str]
) -> None:
    set_launcher(monkeypatch, values)
    with pytest.raises(UserError, match="torchrun did not start this process"):
        launched_world_size()


@pytest.mark.parametrize(
    ("values", "size"),
    [({}, 1), (WHOLE, 2), ({"MASTER_ADDR": "a", "MASTER_PORT": "1"}, 1), ({"WORLD_SIZE": "1"}, 1)],
    ids=str,
)
def test_variables_that_make_sense_are_believed(
    monkeypatch: pytest.MonkeyPatch, values: dict[str, str], size: int
) -> None:
    set_launcher(monkeypatch, values)
    assert launched_world_size() == size


def test_a_second_process_that_nobody_started_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    set_launcher(monkeypatch, {"RANK": "1"})
    outcome = subprocess.run(
        [sys.executable, "main.py", "--n_layer", "0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (outcome.returncode, outcome.stderr) == (
        2,
        "main.py: error: --n_layer must be at least 1, not 0\n",
    )


@pytest.mark.parametrize(
    ("work", "code", "said"),
    [
        ("print('said'); return 3", 3, "said"),
        ("sys.exit(83)", 83, ""),
        ("sys.exit('wrong')", 1, "wrong"),
        ("sys.exit()", 0, ""),
        ("raise ValueError('crash')", 1, "ValueError: crash"),
    ],
)
def test_one_of_several_ends_with_its_code_and_all_that_it_said(work: str, code: int, said: str) -> None:
    program = f"""
import atexit, sys
from distributed import run_and_end
atexit.register(print, "the interpreter ended")
def main():
    {work}
run_and_end(main)
"""
    outcome = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        env={"WORLD_SIZE": "2"},
    )
    assert outcome.returncode == code
    assert said in outcome.stdout + outcome.stderr and "the interpreter ended" not in outcome.stdout
