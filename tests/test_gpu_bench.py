"""bench/gpu.sh: a part that fails, hangs or is interrupted hides nothing; what it tells, and its file."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu import checks, figures
from bench.gpu.__main__ import Run, chosen, main
from bench.gpu.parts import PARTS, Figure, Part
from bench.gpu.processes import STAND_IN, figure_row, rows_of
from bench.gpu.rows import row, tell
from errors import UserError
from tests.emulated_cuda import emulated_cuda
from tests.programs import ROOT, environment

CPU = {"device": "cpu", "name": "a CPU", "torch": "2", "count": 1}
TELLS = f"print({json.dumps(json.dumps(row('sound', 'PASS')))}, flush=True)"


def part(name: str, code: str, **more: Any) -> Part:
    return Part(name, ("-c", code), **more)


def verdicts(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(each["row"], each["verdict"]) for each in rows]


def script(*words: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", "bench/gpu.sh", *words]
    where = environment(PYTHON=sys.executable)
    return subprocess.run(
        command, cwd=ROOT, env=where, capture_output=True, text=True, timeout=300, check=False
    )


# a part


def test_a_part_that_hangs_is_ended_and_what_it_told_is_kept() -> None:
    rows = rows_of(part("hangs", f"{TELLS}; import time; time.sleep(60)"), "cpu", None, 2)
    assert verdicts(rows) == [("sound", "PASS"), ("hangs", "FAIL")]
    assert rows[1]["note"] == "no end within its 2 s"


def test_a_part_that_crashes_says_why_and_what_it_told_is_kept() -> None:
    rows = rows_of(part("crashes", f"{TELLS}; raise SystemError('lost the device')"), "cpu", None, 30)
    assert verdicts(rows) == [("sound", "PASS"), ("crashes", "FAIL")]
    assert rows[1]["note"] == "exit code 1: SystemError: lost the device"


def test_a_part_that_tells_nothing_has_failed() -> None:
    assert verdicts(rows_of(part("silent", "pass"), "cpu", None, 30)) == [("silent", "FAIL")]


@pytest.mark.parametrize(("code", "verdict"), [(0, "PASS"), (3, "FAIL")])
def test_the_exit_code_may_tell_all(code: int, verdict: str) -> None:
    rows = rows_of(part("runs", f"raise SystemExit({code})", says="it runs"), "cpu", None, 30)
    assert verdicts(rows) == [("it runs", verdict)]


@pytest.mark.parametrize(
    ("card", "value", "verdict"),
    [
        ("NVIDIA H100 PCIe", 0.5, "PASS"),
        ("NVIDIA H200", 0.7, "FAIL"),
        ("NVIDIA L4", 0.7, None),
        (None, 0.5, None),
    ],
)
def test_targets_are_those_of_certain_cards(card: str | None, value: float, verdict: str | None) -> None:
    found = figure_row(Figure("time", ("time",), "s", at_most=0.6), {"time": value}, card)
    assert (found["verdict"], found["target"]) == (verdict, "at most 0.6")


def test_a_figure_that_a_script_has_not_told_has_failed() -> None:
    found = figure_row(Figure("time", ("seconds", "fast"), "s"), {"seconds": {"plain": 1}}, None)
    assert (found["verdict"], found["note"]) == ("FAIL", "the script has not told its seconds.fast")


# all parts


def test_parts_after_one_that_fails_are_taken(tmp_path: Path) -> None:
    parts = [part("broken", "raise SystemExit(9)"), part("sound", TELLS)]
    run = Run(parts, CPU, 1, tmp_path / "gpu.json")
    assert run.all()
    assert verdicts(run.result["rows"]) == [("broken", "FAIL"), ("sound", "PASS")]


def test_parts_that_need_devices_are_skipped_with_the_reason(tmp_path: Path) -> None:
    run = Run([part("two", TELLS, needs=2)], CPU, 1, tmp_path / "gpu.json")
    run.all()
    assert verdicts(run.result["rows"]) == [("two", "SKIPPED")]
    assert run.result["rows"][0]["note"] == "needs 2 CUDA devices, here are 0"


def test_an_interrupt_leaves_a_file_with_what_there_is(tmp_path: Path) -> None:
    interrupts = "import os, signal, time; os.kill(os.getppid(), signal.SIGINT); time.sleep(60)"
    parts = [part("sound", TELLS), part("interrupts", interrupts), part("never", TELLS)]
    assert not Run(parts, CPU, 2, tmp_path / "gpu.json").all()
    kept = json.loads((tmp_path / "gpu.json").read_text())
    assert verdicts(kept["rows"]) == [("sound", "PASS"), ("interrupts", "SKIPPED"), ("never", "SKIPPED")]


def test_time_that_a_part_leaves_over_goes_to_the_rest(tmp_path: Path) -> None:
    parts = [part("a", "", seconds=60), part("b", "", seconds=60), part("no", "", seconds=600, needs=1)]
    run = Run(parts, CPU, 4, tmp_path / "gpu.json")
    assert (run.limit(0), run.limit(1)) == (pytest.approx(120, abs=1), pytest.approx(240, abs=1))


def test_every_part_has_a_name_of_its_own() -> None:
    assert len({each.name for each in PARTS}) == len(PARTS)


def test_parts_are_chosen_by_how_their_names_begin() -> None:
    assert [each.name for each in chosen(["equal", "speed"])] == ["equal bfloat16", "equal float16", "speed"]


def test_a_part_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(UserError, match=r"--only unequal: no part begins so; there are: health, equal"):
        chosen(["equal", "unequal"])


# the command


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--minutes", "0"], "--minutes 0: must be above 0"),
        (["--only", "nothing"], "no part begins so"),
        (["--output", "tests"], "--output tests: is there already"),
    ],
)
def test_bad_input_is_told_in_a_line(
    words: list[str], said: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        main(["--cpu", *words])
    told = capsys.readouterr().err
    assert ended.value.code == 2
    assert said in told and told.count("\n") == 1


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here")
def test_a_machine_without_a_device_is_told_of_the_cpu(tmp_path: Path) -> None:
    found = script("--output", str(tmp_path / "gpu.json"))
    assert found.returncode == 2
    assert found.stderr.startswith("bench/gpu.sh: error: there is no CUDA device here")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.essential
def test_the_script_runs_on_a_cpu_and_writes_its_file(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    found = script("--cpu", "--minutes", "4", "--only", "health", "losses", "waits", "--output", str(path))
    assert found.returncode == 0, found.stdout + found.stderr
    kept = json.loads(path.read_text())
    assert kept["machine"]["device"] == "cpu"
    by_part = {(each["part"], each["verdict"]) for each in kept["rows"]}
    assert by_part == {("health", "PASS"), ("losses", "PASS"), ("waits", "SKIPPED")}


@pytest.mark.slow
def test_a_machine_that_has_nothing_but_torch_can_train() -> None:
    code = "import tqdm, sys; from tests.test_fit import train; train(None); print(tqdm.__file__)"
    words = [sys.executable, "-c", code]
    where = environment(PYTHONPATH=os.pathsep.join([str(STAND_IN), str(ROOT)]))
    found = subprocess.run(
        words, cwd=ROOT, env=where, capture_output=True, text=True, timeout=100, check=False
    )
    assert found.returncode == 0, found.stderr
    assert found.stdout.splitlines()[-1] == str(STAND_IN / "tqdm.py")


# checks and figures, as far as an emulated device can run them


def told(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("check", [checks.waits, checks.learns, checks.resume])
def test_a_check_passes_on_an_emulated_device(
    check: Any, dtype: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with emulated_cuda():
        check(Namespace(device="cuda", dtype=dtype, tiny=True))
    torch.use_deterministic_algorithms(False)
    assert {each["verdict"] for each in told(capsys)} == {"PASS"}


@pytest.mark.slow
def test_figures_are_told_on_an_emulated_device(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "LARGEST_MICRO_BATCH", 8)
    monkeypatch.setattr(figures, "need_compiler", no_compiler)
    monkeypatch.setitem(figures.MATMUL_SIDE, "cuda", 64)
    with emulated_cuda():
        for measure in figures.PARTS.values():
            measure(Namespace(device="cuda", dtype="bfloat16", tiny=True))
    rows = {each["row"]: each for each in told(capsys)}
    assert [name for name, each in rows.items() if each["verdict"] == "FAIL"] == [
        "micro-batch in 24 GiB, fast"
    ]
    assert rows["training, eager"]["unit"] == "tokens/s"
    assert rows["micro-batch in 24 GiB, fast"]["value"] == 8
    assert rows["training, compiled"]["verdict"] == "SKIPPED"


def no_compiler(device: torch.device) -> None:
    raise UserError("no compiler")


@pytest.mark.parametrize("most", [0, 8, 9, 31, 32, 100, 128, 1000])
def test_the_largest_micro_batch_is_found_within_an_eighth(most: int) -> None:
    found = figures.largest(lambda size: size <= most)
    assert found <= most
    assert found == 0 if most < 8 else found >= min(most, 128) * 7 / 8 - 1


def test_a_figure_that_is_no_number_is_null(capsys: pytest.CaptureFixture[str]) -> None:
    tell("loss", value=float("nan"))
    assert told(capsys)[0]["value"] is None
