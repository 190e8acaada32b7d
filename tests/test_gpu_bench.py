"""bench/gpu.sh: a part that fails, hangs or is interrupted hides nothing; what it tells, and its file."""

from __future__ import annotations

import json
import subprocess
import sys
from argparse import Namespace
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.gpu import checks, figures, rows
from bench.gpu.__main__ import Run, chosen, main
from bench.gpu.parts import PARTS, Figure, Part
from bench.gpu.processes import figure_row, rows_of
from bench.gpu.reference import cases as reference_cases
from bench.gpu.rows import Lacking, attempt, need, row, tell
from errors import BadNumbers, UserError
from tests import programs
from tests.emulated_cuda import emulated_cuda
from tests.programs import ROOT, environment

CPU = {"device": "cpu", "name": "a CPU", "torch": "2", "count": 1}
TELLS = f"print({json.dumps(json.dumps(row('sound', 'PASS')))}, flush=True)"


def part(name: str, code: str, **more: Any) -> Part:
    return Part(name, ("-c", code), **more)


def verdicts(rows: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(each["row"], each["verdict"]) for each in rows]


def script(*words: str, cwd: Path = ROOT, python: str = sys.executable) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "bench" / "gpu.sh"), *words]
    where = environment(PYTHON=python)
    return subprocess.run(
        command, cwd=cwd, env=where, capture_output=True, text=True, timeout=300, check=False
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


def test_a_part_that_is_killed_is_told_by_the_signal() -> None:
    kills = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    found = rows_of(part("big", kills), "cpu", None, 30)
    assert found[0]["note"] == "killed by SIGKILL: out of memory?: it said nothing"


def test_what_a_failed_part_has_said_is_kept(tmp_path: Path) -> None:
    log = tmp_path / "gpu.json.log"
    trains = "import sys; open(sys.argv[1] + '/console.log', 'w').write('lost step 3'); raise OSError('gone')"
    rows_of(Part("trains", ("-c", trains, "{folder}")), "cpu", None, 30, log)
    rows_of(part("sound", TELLS), "cpu", None, 30, log)
    said = log.read_text()
    assert "=== trains: stderr\nTraceback" in said
    assert "=== trains: console.log\nlost step 3" in said
    assert "=== sound" not in said


def test_figures_have_the_same_names_where_the_script_fails() -> None:
    figure = Figure("stall", ("stall",), "s")
    found = rows_of(part("crashes", "raise OSError('gone')", figures=(figure,)), "cpu", None, 30)
    assert verdicts(found) == [("stall", "FAIL")]


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


# a row


def told(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines() if line.startswith("{")]


def refuse(error: type[Exception]) -> None:
    raise error("no")


@pytest.mark.parametrize(
    ("error", "verdict"),
    [(Lacking, "SKIPPED"), (UserError, "FAIL"), (BadNumbers, "FAIL"), (RuntimeError, "FAIL")],
)
def test_only_what_is_lacking_skips_a_row(
    error: type[Exception], verdict: str, capsys: pytest.CaptureFixture[str]
) -> None:
    attempt("one", lambda: refuse(error))
    assert verdicts(told(capsys)) == [("one", verdict)]


def test_what_a_check_of_the_machine_refuses_is_lacking() -> None:
    with pytest.raises(Lacking, match="no"):
        need(refuse, UserError)


def test_after_the_device_is_lost_rows_are_skipped_with_the_reason(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "_faults", [])
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: refuse(RuntimeError))
    attempt("one", lambda: refuse(RuntimeError))
    attempt("two", lambda: tell("two", "PASS"))
    found = told(capsys)
    assert verdicts(found) == [("one", "FAIL"), ("two", "SKIPPED")]
    assert found[1]["note"] == "the device is lost since one: RuntimeError: no"


@pytest.mark.parametrize("check", [checks.equal, checks.losses])
def test_weights_that_are_no_numbers_fail(
    check: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "fill", broken)
    monkeypatch.setattr(checks, "VARIANTS", {"base": checks.VARIANTS["base"]})
    monkeypatch.setattr(checks, "cases", lambda: reference_cases()[:3])
    check(Namespace(device="cpu", dtype="bfloat16", tiny=True))
    found = [each["verdict"] for each in told(capsys) if not each["row"].startswith("flash")]
    assert set(found) == {"FAIL"}


def broken(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """With one weight that is NaN."""
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    return model


def test_a_loss_of_infinity_is_near_to_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    ones = torch.ones(2)
    endless = checks.Outcome(ones, float("inf"), {"w": ones})
    checks.tell_as_near("one", endless, endless, checks.Outcome(ones, 1.0, {"w": ones}))
    assert told(capsys)[0]["verdict"] == "FAIL"


def test_a_cpu_is_not_judged_where_a_card_is_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "NVIDIA H100")
    assert (figures.verdict_of(False, "cpu"), figures.verdict_of(False, "cuda")) == (None, "FAIL")


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


def test_a_file_that_cannot_be_written_hides_no_row(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run([part("a", TELLS), part("b", TELLS)], CPU, 2, tmp_path / "gone" / "gpu.json")
    assert run.all()
    assert [each["part"] for each in run.result["rows"]] == ["a", "b"]
    assert capsys.readouterr().err.count("gpu.json is not written: No such file or directory\n") == 2


def test_time_that_a_part_leaves_over_goes_to_the_rest(tmp_path: Path) -> None:
    parts = [part("a", "", seconds=60), part("b", "", seconds=60), part("no", "", seconds=600, needs=1)]
    run = Run(parts, CPU, 4, tmp_path / "gpu.json")
    assert (run.limit(0), run.limit(1)) == (pytest.approx(120, abs=1), pytest.approx(240, abs=1))


def test_a_part_may_take_its_own_seconds_where_too_few_are_left_for_all(tmp_path: Path) -> None:
    parts = [part("a", "", seconds=60), part("b", "", seconds=600)]
    run = Run(parts, CPU, 2, tmp_path / "gpu.json")
    assert (run.limit(0), run.limit(1)) == (pytest.approx(60, abs=1), pytest.approx(120, abs=1))


def test_a_part_that_no_time_is_left_for_is_skipped(tmp_path: Path) -> None:
    run = Run([part("short", TELLS, seconds=20), part("long", TELLS, seconds=1000)], CPU, 1, tmp_path / "a")
    run.all()
    assert verdicts(run.result["rows"]) == [("sound", "PASS"), ("long", "SKIPPED")]


def test_every_part_has_a_name_of_its_own() -> None:
    assert len({each.name for each in PARTS}) == len(PARTS)


def test_parts_are_chosen_by_how_their_names_begin() -> None:
    assert [each.name for each in chosen(["equal", "speed"])] == ["equal bfloat16", "speed", "equal float16"]


def test_a_part_that_is_not_there_is_refused_with_those_that_are() -> None:
    with pytest.raises(UserError, match=r"--only unequal: no part begins so; there are: health, equal"):
        chosen(["equal", "unequal"])


# the command


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--minutes", "0"], "--minutes 0: must be above 0"),
        (["--only", "nothing"], "no part begins so"),
        (["--minutes", "ten"], "--minutes: invalid float value: 'ten'"),
        (["--min", "3"], "unknown flag --min (did you mean --minutes?)"),
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


def test_a_python_without_torch_is_refused_by_name(tmp_path: Path) -> None:
    found = script("--list", python=str(tmp_path / "python"))
    assert found.returncode == 2
    assert found.stderr.startswith(f"bench/gpu.sh: error: PYTHON={tmp_path / 'python'} ")
    assert found.stderr.count("\n") == 1


@pytest.mark.slow
@pytest.mark.essential
def test_the_script_runs_on_a_cpu_and_writes_its_file(tmp_path: Path) -> None:
    path = tmp_path / "gpu.json"
    parts = ["health", "losses", "waits", "blocks"]
    words = ["--cpu", "--minutes", "4", "--only", *parts, "--output", path.name]
    found = script(*words, cwd=tmp_path)
    assert found.returncode == 0, found.stdout + found.stderr
    kept = json.loads(path.read_text())
    assert kept["machine"]["device"] == "cpu"
    by_part = {(each["part"], each["verdict"]) for each in kept["rows"]}
    assert by_part == {("health", "PASS"), ("losses", "PASS"), ("waits", "SKIPPED"), ("blocks", "SKIPPED")}


def python_without(package: str, folder: Path) -> Path:
    """An environment that has all packages of this one but one."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    place = next(folder.glob("lib/python*/site-packages"))
    for path in Path(torch.__file__).parents[1].iterdir():
        if not path.name.startswith(package):
            (place / path.name).symlink_to(path)
    return folder / "bin" / "python"


SELFTEST_STARTS = """
import importlib.util, os, sys
from pathlib import Path
import config
from bench.gpu.processes import environment
assert importlib.util.find_spec("tqdm") is None
os.environ.update(environment())
from optim.selftest import Training
Training(config.parse_args(sys.argv[2:]), Path(sys.argv[1]), 1).run()
"""


@pytest.mark.slow
def test_trainings_of_the_selftest_run_without_tqdm(tmp_path: Path) -> None:
    python = python_without("tqdm", tmp_path / "bare")
    flags = programs.flags(tmp_path, iterations=2, eval_batches=1)
    words = [str(python), "-c", SELFTEST_STARTS, str(tmp_path / "results"), *flags]
    found = subprocess.run(
        words, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=100, check=False
    )
    assert found.returncode == 0, found.stderr
    assert list((tmp_path / "results").rglob("summary.json"))


# checks and figures, as far as an emulated device can run them


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("check", [checks.waits, checks.learns, checks.resume])
def test_a_check_passes_on_an_emulated_device(
    check: Any, dtype: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checks, "RESUME_STEPS", 2)
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
    best = "micro-batch in 24 GB, without activation checkpointing"
    missed = [name for name, each in rows.items() if each["verdict"] == "FAIL"]
    assert missed == ["fast over reference attention", best]  # targets, on an emulated H100
    assert (rows[best]["value"], rows[best]["note"]) == (8, "eager, of eager")
    assert rows["training, eager"]["unit"] == "tokens/s"
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
