"""What is asked of the operating system, which is not always Linux; and which code runs, so that a change
between two jobs is seen.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import processes
from processes import code_change, code_facts, is_running, peak_kib, torch_change

CLEAN = {"revision": "a" * 40, "dirty": False, "changes": None}
DIRTY = {"revision": "a" * 40 + "+changes", "dirty": True, "changes": "12345678"}


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository of one file, which stands for the code that runs."""

    def git(*words: str) -> None:
        subprocess.run(
            ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words],
            check=True,
            capture_output=True,
        )

    (tmp_path / "main.py").write_text("1\n")
    git("init")
    git("add", ".")
    git("commit", "-m", "one")
    monkeypatch.setattr(processes, "SNAPSHOT", tmp_path / "revision.json")
    return tmp_path


def test_facts_tell_a_clean_tree_from_a_changed_one_and_one_change_from_another(checkout: Path) -> None:
    clean = code_facts()
    (checkout / "main.py").write_text("2\n")
    second = code_facts()
    (checkout / "main.py").write_text("3\n")
    third = code_facts()
    assert (clean["dirty"], second["dirty"], third["dirty"]) == (False, True, True)
    assert second["revision"] == third["revision"] == clean["revision"] + "+changes"
    assert second["changes"] != third["changes"]


def test_a_snapshot_tells_the_facts_of_the_code_that_it_was_made_of(checkout: Path) -> None:
    (checkout / "revision.json").write_text(json.dumps(DIRTY))
    assert code_facts() == DIRTY


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (CLEAN, DIRTY),
        (DIRTY, CLEAN),
        (DIRTY, DIRTY | {"changes": "87654321"}),
        (CLEAN, CLEAN | {"revision": "b" * 40}),
        ({"revision": "a" * 40}, CLEAN | {"revision": "b" * 40}),
    ],
)
def test_other_code_is_one_line_that_names_both(before: dict[str, object], now: dict[str, object]) -> None:
    said = code_change(before, now)
    assert said is not None and "\n" not in said
    assert str(before["revision"])[:12] in said and str(now["revision"])[:12] in said


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (CLEAN, CLEAN),
        (DIRTY, DIRTY),
        ({}, CLEAN),
        ({"revision": "a" * 40}, CLEAN),
        ({"revision": DIRTY["revision"]}, DIRTY),
        ({"revision": None}, CLEAN),
        (CLEAN, {"revision": None, "dirty": None, "changes": None}),
    ],
)
def test_code_that_is_the_same_or_unknown_is_no_change(
    before: dict[str, object], now: dict[str, object]
) -> None:
    assert code_change(before, now) is None


def test_another_build_of_torch_is_one_line_that_names_both() -> None:
    said = torch_change("2.11.0+cpu", "2.13.0+cpu")
    assert said is not None and "\n" not in said and "2.11.0+cpu" in said and "2.13.0+cpu" in said


def test_the_same_torch_is_no_change() -> None:
    assert torch_change("2.13.0+cpu", "2.13.0+cpu") is None


# the system


def test_peak_memory_is_in_kib_where_the_system_counts_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    def usage(who: int) -> resource.struct_rusage:
        return resource.struct_rusage((0.0, 0.0, 3 << 20, *[0] * 13))

    monkeypatch.setattr(resource, "getrusage", usage)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert peak_kib() == 3 << 10
    monkeypatch.setattr(sys, "platform", "linux")
    assert peak_kib() == 3 << 20


def test_a_process_is_known_to_run_without_proc() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    assert (is_running(os.getpid()), is_running(1), is_running(ended.pid)) == (True, True, False)
