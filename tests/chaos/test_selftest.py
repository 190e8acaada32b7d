"""--selftest_resume: it passes where resuming is exact, and fails where it is not."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from config import parse_args
from optim.selftest import Training
from tests.chaos import FULL
from tests.programs import ROOT, copy_sources, run

pytestmark = pytest.mark.slow

SMALL = ["--iterations", "40", "--device", "cpu", "--n_embd", "32"]
ALONE = [*SMALL, "--acc_steps", "1"]  # which two processes cannot share


def selftest(
    results: Path, *more: str, main: Path = ROOT / "main.py", recipe: Sequence[str] = ()
) -> tuple[int, str, str]:
    given = ["--selftest_resume", "--results_base_folder", str(results), *more]
    outcome = run([sys.executable, str(main), *recipe, *given], timeout=500)
    return outcome.returncode, outcome.stdout, outcome.stderr


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, int, str]:
    results = tmp_path_factory.mktemp("here")
    code, said, errors = selftest(results, *(SMALL if FULL else ALONE))
    return results, code, said + errors


def test_passes_here(here: tuple[Path, int, str]) -> None:
    assert here[1] == 0, here[2]
    assert here[2].splitlines()[-1].startswith("PASS: ")


def test_kills_three_times_and_leaves_nothing(here: tuple[Path, int, str]) -> None:
    assert (
        len(re.findall(r"1 process: .*killed at step \d+.*killed at step \d+.*killed at step \d+", here[2]))
        == 1
    )
    assert list(here[0].iterdir()) == []


@pytest.mark.skipif(not FULL, reason="of the full run")
def test_passes_here_for_the_byte_gpt(tmp_path: Path) -> None:
    code, said, errors = selftest(tmp_path, "--acc_steps", "1", "--device", "cpu", recipe=["bytes"])
    assert code == 0, errors
    assert said.splitlines()[-1].startswith("PASS: ")


@pytest.mark.skipif(not FULL, reason="of the full run")
def test_fails_where_the_optimiser_is_not_resumed(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy_sources(copy)
    progress = copy / "optim" / "progress.py"
    whole = progress.read_text()
    broken = whole.replace('load_optimizer_state(self.optimizer, state["optimizer"])', "pass")
    assert broken != whole
    progress.write_text(broken)
    code, said, _ = selftest(tmp_path / "exps", *ALONE, main=copy / "main.py")
    assert code == 1
    assert re.match(r"FAIL: .*/model/", said.splitlines()[-1])


def test_a_config_file_is_not_handed_on(tmp_path: Path) -> None:
    """It would put back what the self-test has set otherwise: the trainings would be self-tests again."""
    (tmp_path / "mine.json").write_text('{"selftest_resume": true, "max_runtime_minutes": 1, "n_embd": 32}')
    words = Training(parse_args(["--config", str(tmp_path / "mine.json")]), tmp_path, 1).command
    again = parse_args(words[words.index(str(ROOT / "main.py")) + 1 :])
    assert (again.config, again.selftest_resume, again.max_runtime_minutes, again.n_embd) == (
        None,
        False,
        None,
        32,
    )


def test_settings_that_cannot_be_are_told_in_one_line(tmp_path: Path) -> None:
    code, _, errors = selftest(tmp_path, *ALONE, "--dataset", "nowhere")
    assert code == 2 and len(errors.strip().splitlines()) == 1
    assert "dataset 'nowhere' is not prepared" in errors
