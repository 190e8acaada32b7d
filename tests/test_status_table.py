"""status.py on a terminal: columns, widths, and the table that is drawn again and again."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import status
from monitor import page
from tests.statuses import experiment, job_of, metric, pending, said, segment, start, write_queue

pytestmark = pytest.mark.usefixtures("no_programs")

# the table


def on_terminal(
    base: Path, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> list[str]:
    """What a terminal of so many columns shows."""
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", str(columns))
    return said([str(base)], capsys).splitlines()


LONG_JOB = "login-node-04.cluster:1234567"


def test_eighty_columns_hold_name_state_and_job(tmp_path, capsys, monkeypatch):
    experiment(
        tmp_path,
        "owt2/lncot/" + "x" * 60,
        itr=39000,
        iterations=40000,
        job_id=LONG_JOB,
        metrics=[metric(9, "eval", val_pp=50257.25)],
    )
    lines = on_terminal(tmp_path, 80, capsys, monkeypatch)
    assert max(map(len, lines)) <= 80
    assert "running" in lines[1] and LONG_JOB in lines[1]


def test_a_wide_terminal_has_all_columns(tmp_path, capsys, monkeypatch):
    experiment(tmp_path)
    assert on_terminal(tmp_path, 150, capsys, monkeypatch)[0].split()[-1] == "disk"


def test_an_unreadable_cell_fits_eighty_columns(tmp_path, capsys, monkeypatch):
    (experiment(tmp_path, "y" * 60) / "status.json").write_text("{")
    lines = on_terminal(tmp_path, 80, capsys, monkeypatch)
    assert "unreadable: status.json" in lines[1] and len(lines[1]) <= 80


def test_a_terminal_shows_models_by_their_short_names(tmp_path, capsys, monkeypatch):
    name = "adaptive_cotformer_mod_efficient_sigmoid_crw_lnmid_de_random_factor_single_final"
    experiment(tmp_path, f"owt2/{name}/a")
    assert on_terminal(tmp_path, 100, capsys, monkeypatch)[1].startswith("owt2/adm/a ")


def test_what_lives_stands_first(tmp_path, capsys, monkeypatch):
    for name, state in (("a", "finished"), ("b", "running"), ("c", "stopped"), ("d", "failed")):
        experiment(tmp_path / "exps", name, state=state, job_id=name)
    write_queue(tmp_path / "bin", monkeypatch, pending(job_of(tmp_path / "exps" / "c")))
    names = [line[0] for line in said([str(tmp_path / "exps")], capsys).splitlines()[1:5]]
    assert names == ["b", "c", "a", "d"]


def test_columns_fit_120_where_names_are_short(tmp_path, capsys):
    experiment(
        tmp_path,
        "owt2/lncot/run_1",
        itr=39000,
        iterations=40000,
        job_id="4711234",
        metrics=[metric(9, "eval", val_pp=50257.25), metric(9)],
    )
    assert max(map(len, said([str(tmp_path)], capsys).splitlines())) <= 120


def test_a_pipe_gets_the_whole_name(tmp_path, capsys):
    experiment(tmp_path, "n" * 200)
    assert "n" * 200 in said([str(tmp_path)], capsys)


@given(st.text(min_size=1, max_size=300), st.integers(page.NARROWEST_NAME, 300))
def test_a_shortened_name_has_the_width_and_both_ends(name, width):
    short = page.shortened(name, width)
    assert len(short) <= width
    assert (short[0], short[-1]) == (name[0], name[-1])


@pytest.mark.parametrize(
    ("seconds", "text"), [(40, "40s"), (720, "12m"), (18720, "5h 12m"), (183600, "2d 03h"), (None, "-")]
)
def test_durations_are_for_people(seconds, text):
    assert page.duration(seconds) == text


@pytest.mark.parametrize("state", ["failed", "stopped"])
def test_why_a_run_ended_stands_below_the_table(tmp_path, capsys, state):
    experiment(tmp_path, state=state, reason="disk\nfull", segments=[segment(0, 0, 50, reason="disk full")])
    assert said([str(tmp_path)], capsys).splitlines()[-1] == f"run: {state}: disk full"


def test_another_reason_of_the_last_segment_is_told_too(tmp_path, capsys):
    experiment(tmp_path, state="stopped", reason="stop file")
    assert said([str(tmp_path)], capsys).splitlines()[-1] == "run: stopped: stop file; last segment: SIGUSR1"


def test_text_from_files_does_nothing_to_the_terminal(tmp_path, capsys):
    experiment(tmp_path, "a\x1b[2Jb", state="failed", reason="\x1b]0;x\x07")
    assert not re.search(r"[\x00-\x09\x0b-\x1f]", said([str(tmp_path)], capsys))


# watching


def read_until(terminal: int, wanted: bytes, seconds: float = 30) -> bytes:
    text, end = b"", time.monotonic() + seconds
    while wanted not in text and time.monotonic() < end:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                text += os.read(terminal, 65536)
            except OSError:  # the program has closed it
                break
    assert wanted in text, text
    return text


def watch_on_terminal(base: Path, columns: int = 100) -> tuple[subprocess.Popen[bytes], int]:
    terminal, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    env = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES")}
    process = start("--watch", "0.5", str(base), stdin=inner, stdout=inner, stderr=inner, env=env)
    os.close(inner)
    return process, terminal


@pytest.mark.slow
@pytest.mark.parametrize("ending", [signal.SIGINT, signal.SIGTERM])
def test_watch_ends_cleanly_and_restores_the_terminal(tmp_path, ending):
    experiment(tmp_path)
    process, terminal = watch_on_terminal(tmp_path)
    read_until(terminal, b"running")
    process.send_signal(ending)
    text = read_until(terminal, b"\x1b[?25h\x1b[?1049l")
    assert process.wait(10) == 0
    assert b"Traceback" not in text
    os.close(terminal)


@pytest.mark.slow
def test_watch_redraws_what_changed(tmp_path):
    experiment(tmp_path)
    process, terminal = watch_on_terminal(tmp_path)
    read_until(terminal, b"50/100")
    experiment(tmp_path, itr=77)
    read_until(terminal, b"77/100")
    process.send_signal(signal.SIGINT)
    assert process.wait(10) == 0
    os.close(terminal)


@pytest.mark.slow
def test_a_narrow_terminal_shortens_the_name_in_the_middle(tmp_path):
    experiment(tmp_path, "begin" + "x" * 150 + "end")
    process, terminal = watch_on_terminal(tmp_path, columns=110)
    text = read_until(terminal, b"running")
    process.send_signal(signal.SIGINT)
    assert re.search("begin.*…x*end".encode(), text)
    assert process.wait(10) == 0
    os.close(terminal)


def test_a_word_after_watch_that_is_no_number_is_a_folder():
    args = status.parse(["--watch", "2024-exps"])
    assert (args.watch, args.folders) == (10.0, [Path("2024-exps")])
