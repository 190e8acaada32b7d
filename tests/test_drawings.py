"""The page's drawings: the same curves to the eye in few bytes, from a cache that never shows what is no
longer so.
"""

from __future__ import annotations

import json
import math
import os
import random
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from monitor import draw, drawings
from tests.programs import ROOT

CROWDED_PAGE = drawings.POINTS_OF_A_PAGE // 1000  # points of a curve where a page has 1,000 experiments
ROWS = 4000
NOISE = random.Random(0)


def train_row(step: int, **more: Any) -> dict[str, Any]:
    loss = 2.8 + 7 * math.exp(-step / 500) + NOISE.gauss(0, 0.1)
    values = {"loss": loss, "lr": 1e-3 * math.cos(step / ROWS), "grad_norm": 0.3 + 0.1 * NOISE.random()}
    return {
        "kind": "train",
        "step": step,
        **values,
        "time": {"unix": 1.8e9 + step, "tokens_per_second": 5e4 + NOISE.gauss(0, 300)},
        **more,
    }


def rows_of_a_long_run(**spikes: dict[int, float]) -> list[dict[str, Any]]:
    """Noisy ones; spikes: values at some steps, by their key."""
    rows = [train_row(step) for step in range(ROWS)]
    for key, values in spikes.items():
        for step, value in values.items():
            rows[step][key] = value
    return rows + [
        {"kind": "eval", "step": step, "val_loss": 3 + 7 * math.exp(-step / 500), "val_pp": 20.0}
        for step in range(0, ROWS, 100)
    ]


def strokes(drawing: str, style: str) -> list[tuple[float, float]]:
    """Places that the path of a curve goes through."""
    (path,) = re.findall(rf'<path class="{style}(?: [am])?" d="([^"]*)"', drawing)
    x = y = 0
    places = []
    for command, text in re.findall(r"([Mmlvz])([^Mmlvz]*)", path):
        numbers = [int(found) for found in re.findall(r"-?\d+", text)]
        if command == "M":
            x, y = numbers[:2]
            begin = x, y
            places.append(begin)
        elif command == "v":
            y += numbers[0]
            places.append((x, y))
        elif command == "z":
            x, y = begin
        else:
            for right, down in zip(numbers[::2], numbers[1::2], strict=True):
                x, y = x + right, y + down
                places.append((x, y))
    return places


def at(step: float, last: float = ROWS - 1) -> float:
    """Where a step is in a panel on the left."""
    return draw.COLUMNS[0] + step / last * draw.WIDTH


# curves


@pytest.mark.parametrize("limit", [CROWDED_PAGE, 200, draw.POINTS])
def test_a_spike_stands_at_its_step(limit):
    norms = strokes(draw.drawing(rows_of_a_long_run(grad_norm={1234: 5.0}), [], limit), "n")
    assert min(norms, key=lambda place: place[1])[0] == pytest.approx(at(1234), abs=1)


@pytest.mark.parametrize("limit", [CROWDED_PAGE, draw.POINTS])
def test_a_drop_reaches_as_far_down(limit):
    rows = rows_of_a_long_run(tokens_per_second={700: 100.0})
    assert max(y for _, y in strokes(draw.drawing(rows, [], limit), "s")) == pytest.approx(
        draw.ROWS[1] + draw.HEIGHT, abs=1
    )


def test_each_of_many_spikes_is_drawn():
    steps = range(50, ROWS, 100)
    speeds = strokes(
        draw.drawing(rows_of_a_long_run(tokens_per_second=dict.fromkeys(steps, 1000.0)), [], CROWDED_PAGE),
        "s",
    )
    low = [x for x, y in speeds if y > draw.ROWS[1] + draw.HEIGHT / 2]
    assert low == [pytest.approx(at(step) + draw.COLUMNS[1] - draw.COLUMNS[0], abs=1) for step in steps]


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example],
)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=600), st.sampled_from([2, 24, CROWDED_PAGE, 500]))
def test_no_extreme_is_lost_from_any_curve(values, limit):
    rows = [{"kind": "train", "step": step, "loss": value} for step, value in enumerate(values)]
    heights = [y for _, y in strokes(draw.drawing(rows, [], limit), "t")]
    upright = draw._upright(draw.PANELS[0], values)
    assert min(heights) == pytest.approx(upright.place(max(values)), abs=1)
    assert max(heights) == pytest.approx(upright.place(min(values)), abs=1)


def heights(places: list[tuple[float, float]], x: float) -> list[float]:
    """Where the lines between places cross an upright line."""
    found = []
    for (left, before), (right, after) in pairwise(places):
        if min(left, right) <= x <= max(left, right) and left != right:
            found.append(before + (after - before) * (x - left) / (right - left))
    return found


@pytest.mark.parametrize(
    ("style", "key"), [("t", "loss"), ("n", "grad_norm"), ("s", "tokens_per_second"), ("r", "lr")]
)
def test_a_crowded_page_shows_the_curve_of_an_empty_one(style, key):
    """The area is as high as the dense line around it, and lies where that does, to within some hundredths
    of the panel.
    """
    rows = rows_of_a_long_run()
    dense, crowded = (strokes(draw.drawing(rows, [], limit), style) for limit in (draw.POINTS, CROWDED_PAGE))
    left = draw.COLUMNS[style in "sr"]
    differences = []
    for x in range(left + 10, left + draw.WIDTH - 10, 10):
        near = [y for place in range(x - 7, x + 8) for y in heights(dense, place + 0.5)]
        seen = heights(crowded, x + 0.5)
        differences += [abs(min(near) - min(seen)), abs(max(near) - max(seen))]
    assert statistics.mean(differences) < 0.05 * draw.HEIGHT


@pytest.mark.parametrize("limit", [CROWDED_PAGE, draw.POINTS])
def test_a_curve_reaches_from_the_first_step_to_the_last(limit):
    places = [x for x, _ in strokes(draw.drawing(rows_of_a_long_run(), [], limit), "t")]
    assert (min(places), max(places)) == (draw.COLUMNS[0], draw.COLUMNS[0] + draw.WIDTH)


def test_a_smooth_curve_stays_a_line():
    assert 'class="r"' in draw.drawing(rows_of_a_long_run(), [], CROWDED_PAGE)


def test_the_frame_that_figures_share_is_styled_where_it_is_shown_again():
    """What <use> shows has no ancestors of its own: a browser matches no rule there that names one."""
    selectors = re.sub(r"\{[^}]*\}", ",", draw.STYLE).split(",")
    assert [
        selector for selector in map(str.strip, selectors) if " " in selector and "+" not in selector
    ] == []


def test_a_thousand_drawings_have_room_on_a_page():
    assert (
        1000 * len(draw.drawing(rows_of_a_long_run(grad_norm={9: 9.0}), [1000, 2000, 3000], CROWDED_PAGE))
        < 2e6
    )


def test_rows_of_earlier_code_that_are_no_json_are_drawn(tmp_path):
    text = "".join(
        json.dumps(train_row(step, **({"grad_norm": math.inf, "loss": math.nan} if step == 5 else {}))) + "\n"
        for step in range(10)
    )
    assert "Infinity" in text and "NaN" in text
    (tmp_path / "metrics.jsonl").write_text(text)
    drawn = drawings.drawings_of({tmp_path: []})[tmp_path].curves
    assert len(strokes(drawn, "n")) > 2 and "nan" not in drawn


ANY = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=3)
    | st.lists(st.integers(), max_size=2)
)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.dictionaries(
            st.sampled_from(
                ["kind", "step", "loss", "lr", "grad_norm", "val_loss", "time", "tokens_per_second"]
            ),
            ANY | st.sampled_from(["train", "eval"]) | st.fixed_dictionaries({"tokens_per_second": ANY}),
        ),
        max_size=8,
    )
)
def test_rows_of_any_values_can_be_drawn(rows):
    draw.drawing(rows, [], CROWDED_PAGE)


# the cache


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / drawings.CACHE


@pytest.fixture
def place(tmp_path: Path, cache: Path) -> Path:
    """An experiment's folder, whose drawing is in the cache."""
    folder = tmp_path / "exps" / "run"
    folder.mkdir(parents=True)
    write(folder, [train_row(step) for step in range(10)])
    drawings.drawings_of({folder: []})
    return folder


def write(folder: Path, rows: list[dict[str, Any]]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def fresh(folder: Path, ledger: list[dict[str, Any]]) -> drawings.Drawn:
    return drawings._draw((folder, drawings.starts_of(ledger), draw.POINTS, None))


def test_what_did_not_change_is_not_drawn_again(place, cache):
    cache.write_text(cache.read_text().replace("<path", "<path id='kept'"))
    assert "kept" in drawings.drawings_of({place: []})[place].curves


def test_a_further_row_is_seen(place):
    write(place, [train_row(step) for step in range(20)])
    assert drawings.drawings_of({place: []})[place] == fresh(place, [])


def test_other_numbers_of_the_same_size_and_time_are_seen(place):
    path = place / "metrics.jsonl"
    text, times = path.read_text(), (path.stat().st_atime_ns, path.stat().st_mtime_ns)
    other = text.replace('"loss": 9', '"loss": 5')
    assert other != text and len(other) == len(text)
    path.write_text(other)
    os.utime(path, ns=times)
    assert drawings.drawings_of({place: []})[place] == fresh(place, [])


def test_a_further_segment_is_seen(place):
    ledger = [{"start_step": 0}, {"start_step": 5}]
    assert drawings.drawings_of({place: ledger})[place] == fresh(place, ledger) != fresh(place, [])


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"x": 1}', '{"x": [1, 2]}', "[" * 5000])
def test_a_damaged_cache_is_drawn_anew(place, cache, damage):
    cache.write_text(damage)
    assert drawings.drawings_of({place: []})[place] == fresh(place, [])
    assert str(place) in json.loads(cache.read_text())


def test_a_cache_that_cannot_be_written_is_left_out(place, cache):
    cache.unlink()
    cache.parent.rmdir()
    cache.parent.write_text("a file of the user's")
    assert drawings.drawings_of({place: []})[place] == fresh(place, [])
    assert cache.parent.read_text() == "a file of the user's"


@pytest.mark.skipif(os.getuid() != 0, reason="only root gives files away")
def test_a_cache_of_another_user_is_not_believed(place, cache):
    cache.write_text(cache.read_text().replace("<path", "<path id='planted'"))
    os.chown(cache, 65534, 65534)
    assert "planted" not in drawings.drawings_of({place: []})[place].curves


def test_a_relative_cache_folder_does_not_count(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert drawings.cache_path() == tmp_path / ".cache" / drawings.CACHE


def test_drawings_of_another_page_stay_in_the_cache(place, cache, tmp_path):
    (tmp_path / "other").mkdir()
    write(tmp_path / "other", [train_row(1)])
    drawings.drawings_of({tmp_path / "other": []})
    assert set(json.loads(cache.read_text())) == {str(place), str(tmp_path / "other")}


def many(base: Path, count: int, rows: int) -> dict[Path, list[dict[str, Any]]]:
    folders = [base / f"run_{index}" for index in range(count)]
    for folder in folders:
        folder.mkdir(parents=True)
        write(folder, [train_row(step) for step in range(rows)])
    return {folder: [] for folder in folders}


def test_several_processes_draw_what_one_does(tmp_path, cache):
    ledgers = many(tmp_path / "exps", drawings.FEW + 1, 5)
    limit = drawings.POINTS_OF_A_PAGE // len(ledgers)
    assert drawings.drawings_of(ledgers) == {
        folder: drawings._draw((folder, [], limit, None)) for folder in ledgers
    }


@pytest.mark.slow
def test_a_page_that_is_killed_leaves_no_process_behind(tmp_path, cache):
    (first,) = many(tmp_path / "exps", 1, 2000)
    (first / "status.json").write_text("{}")
    for number in range(1, 200):
        shutil.copytree(first, tmp_path / "exps" / f"run_{number}")
    page = subprocess.Popen(
        [sys.executable, "status.py", "--html", str(tmp_path / "page.html"), str(tmp_path / "exps")], cwd=ROOT
    )
    children = Path(f"/proc/{page.pid}/task/{page.pid}/children")
    while not (pids := children.read_text().split()):
        assert page.poll() is None
        time.sleep(0.01)
    page.send_signal(signal.SIGKILL)
    page.wait()
    end = time.monotonic() + 10
    while any(
        Path(f"/proc/{pid}/stat").exists() and Path(f"/proc/{pid}/stat").read_text().split()[2] != "Z"
        for pid in pids
    ):
        assert time.monotonic() < end
        time.sleep(0.05)
