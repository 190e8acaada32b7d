"""What the preflight makes of SLURM's and Lustre's words, and of what earlier jobs left."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import config
from errors import UserError
from iridis import preflight
from optim.reader import Record
from tests import history
from tests.programs import flags, folder, train, trained


@pytest.fixture
def lfs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A program `lfs` that prints a line: what a Lustre client's would."""

    def install(line: str, code: int = 0) -> None:
        program = tmp_path / "bin" / "lfs"
        program.parent.mkdir(exist_ok=True)
        program.write_text(f"#!/bin/sh\necho '{line}'\nexit {code}\n")
        program.chmod(0o755)
        monkeypatch.setenv("PATH", str(program.parent), prepend=":")

    return install


def ledger(folder: Path, *rows: dict[str, object]) -> Path:
    (folder / "segments.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5", 300),
        ("90:30", 5430),
        ("1:02:03", 3723),
        ("2-00:00:00", 172800),
        ("1-12", 129600),
        ("1-12:30", 131400),
        ("0-0:0:1", 1),
        ("UNLIMITED", None),
        ("infinite", None),
        ("n/a", None),
    ],
)
def test_time_limits_are_read_as_slurm_reads_them(text: str, seconds: int | None) -> None:
    assert preflight.seconds_of(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "1:2:3:4", "-5", "1-", "1.5", "1-1:1:1:1", "²"])
def test_what_is_no_time_limit_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="is no time limit"):
        preflight.seconds_of(text)


@pytest.mark.parametrize(
    ("gres", "count"),
    [
        ("gpu:2", 2),
        ("gpu:l4:2", 2),
        ("gpu:l4:2(S:0-1),shard:8", 2),
        ("shard:8,gpu:a100:4(S:0,2)", 4),
        ("gpu:l4:2,gpu:a100:4", 6),
        ("(null)", 0),
        ("shard:8", 0),
        ("", 0),
    ],
)
def test_gpus_of_a_node_are_counted(gres: str, count: int) -> None:
    assert preflight.gpus_in(gres) == count


def test_forecast_tells_speed_steps_left_time_and_jobs(tmp_path: Path) -> None:
    ledger(
        tmp_path,
        {"start_step": 0, "end_step": 100, "seconds": 1800.0},
        {"start_step": 100, "end_step": 100, "seconds": 900.0},
        {"start_step": 100, "end_step": 300, "seconds": 5400.0},
    )
    assert (
        preflight.forecast(Record(tmp_path), 1000, "2:00:00")
        == "forecast: 150 steps/h, 700 of 1,000 steps left: 4.7 h = 0.2 days of running, "
        "3 more job(s) of 2:00:00"
    )


def test_there_is_no_forecast_before_a_job_has_advanced(tmp_path: Path) -> None:
    assert preflight.forecast(Record(tmp_path), 1000, "1") is None
    assert (
        preflight.forecast(
            Record(ledger(tmp_path, {"start_step": 5, "end_step": 5, "seconds": 60.0})), 1000, "1"
        )
        is None
    )


def test_jobs_of_another_recipe_have_its_name() -> None:
    assert preflight.short_name(config.parse_args(["gpt", "--depth", "4"])) == "gpt"
    assert (
        preflight.short_name(config.parse_args(["--model", "cot", "--n_layer", "12", "--n_repeat", "5"]))
        == "cot12x5"
    )


def test_forecast_without_limit_names_no_jobs(tmp_path: Path) -> None:
    ledger(tmp_path, {"start_step": 0, "end_step": 100, "seconds": 3600.0})
    record = Record(tmp_path)
    assert "job" not in str(preflight.forecast(record, 200, None)) and "job" not in str(
        preflight.forecast(record, 200, "UNLIMITED")
    )


def looked(folder: Path, **values: object) -> Record:
    (folder / "status.json").write_text(json.dumps(values))
    return Record(folder)


def test_lead_is_the_slowest_step_and_save_and_a_minute(tmp_path: Path) -> None:
    assert (
        preflight.lead_seconds(
            looked(tmp_path, slowest_step_seconds=12.5, slowest_save_seconds=30.0), "1:00:00"
        )
        == 102
    )


def test_lead_is_never_more_than_a_quarter_of_the_limit(tmp_path: Path) -> None:
    assert (
        preflight.lead_seconds(looked(tmp_path, slowest_step_seconds=200.0, slowest_save_seconds=300.0), "10")
        == 150
    )


@pytest.mark.parametrize(
    "values",
    [
        {},
        {"slowest_step_seconds": 3.0},
        {"slowest_step_seconds": 0.0, "slowest_save_seconds": 0.0},
        {"slowest_step_seconds": "3", "slowest_save_seconds": None},
    ],
)
def test_lead_is_cautious_where_nothing_was_timed(tmp_path: Path, values: dict[str, object]) -> None:
    assert preflight.lead_seconds(looked(tmp_path, **values), "1-00:00:00") == preflight.LEAD_SECONDS


def test_lead_survives_a_damaged_status_file(tmp_path: Path) -> None:
    (tmp_path / "status.json").write_text('{"slowest')
    assert preflight.lead_seconds(Record(tmp_path, problems=[]), None) == preflight.LEAD_SECONDS


QUOTA = "      {place} {used} 0 {limit} - 12 0 0 -"


def test_free_space_is_what_a_lustre_quota_leaves(tmp_path: Path, lfs) -> None:
    lfs(QUOTA.format(place=tmp_path, used=1000, limit=1500))
    assert preflight.free_bytes(tmp_path) == 500 * 1024


def test_free_space_of_a_quota_that_is_exceeded_is_none(tmp_path: Path, lfs) -> None:
    lfs(QUOTA.format(place=tmp_path, used="2000*", limit=1500))
    assert preflight.free_bytes(tmp_path) == 0


@pytest.mark.parametrize(
    "line",
    [QUOTA.format(place="/x", used=1000, limit=0), "", "quota: no filesystem", "/x [0] 0 [0] - 0 0 0 -"],
)
def test_without_a_quota_free_space_is_that_of_the_disk(tmp_path: Path, lfs, line: str) -> None:
    lfs(line)
    assert preflight.free_bytes(tmp_path) == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.01)


def test_free_space_is_that_of_the_disk_where_lfs_fails(tmp_path: Path, lfs) -> None:
    lfs(QUOTA.format(place=tmp_path, used=1, limit=2), code=1)
    assert preflight.free_bytes(tmp_path) > 2048


def test_free_space_of_a_folder_to_come_is_that_of_its_nearest_parent(tmp_path: Path) -> None:
    assert preflight.free_bytes(tmp_path / "a" / "b") == pytest.approx(
        shutil.disk_usage(tmp_path).free, rel=0.01
    )


def sinfo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *limits: str) -> None:
    """A program `sinfo` that prints a partition's limits, a line for each."""
    program = tmp_path / "bin" / "sinfo"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nprintf '%s\\n' " + " ".join(limits) + "\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")


@pytest.mark.parametrize(
    ("limits", "wanted", "allowed"),
    [
        (["1:00:00"], "2:00:00", "ALLOWED=1:00:00\nALLOWED_SECONDS=3600\n"),
        (["1:00:00"], "60", "\n"),
        (["infinite"], "2:00:00", "\n"),
        (["30:00", "1:00:00"], "UNLIMITED", "ALLOWED=1:00:00\nALLOWED_SECONDS=3600\n"),
        (["30:00", "infinite"], "UNLIMITED", "\n"),
    ],
)
def test_a_limit_above_the_partition_s_is_told(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    limits: list[str],
    wanted: str,
    allowed: str,
) -> None:
    sinfo(tmp_path, monkeypatch, *limits)
    assert preflight.main(["--partition", "p", "--time", wanted, "--allowed"]) == 0
    assert capsys.readouterr().out == allowed


@pytest.mark.parametrize(
    "words",
    [
        ["--init_from"],
        ["--objective", "distillation", "--teacher"],
        ["--objective", "dpo", "--reference"],
    ],
)
def test_weights_to_begin_with_or_to_learn_from_are_looked_for_before_a_job_is_queued(
    words: list[str], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=f"{words[-1]} nowhere: no such file"):
        preflight.main(
            ["--", "--dataset", "stdlib", *words, "nowhere", "--results_base_folder", str(tmp_path)]
        )


@pytest.mark.parametrize(
    ("flags", "count"),
    [
        ("--save_checkpoint_freq 10", 5),
        ("--save_checkpoint_freq 10 --keep_steps 40 55 55 100 200", 7),
        ("--save_checkpoint_freq 60", 4),
        ("--save_checkpoint_freq 10 --keep_checkpoints 0 --keep_steps 40 55", 14),
        ("--keep_steps 40", 5),
    ],
)
def test_checkpoints_of_steps_that_are_kept_are_counted(flags: str, count: int) -> None:
    assert preflight.checkpoints_at_once(config.parse_args(["--iterations", "100", *flags.split()])) == count


def test_lead_is_doubled_after_each_job_that_outlasted_it(tmp_path: Path) -> None:
    outlasted = {"reason": "time limit within a step or save"}
    ledger(tmp_path, outlasted, {"reason": "time limit"}, outlasted, outlasted)
    assert (
        preflight.lead_seconds(looked(tmp_path, slowest_step_seconds=10, slowest_save_seconds=30), "1:00:00")
        == 400
    )


# what main.py would refuse when it opens the experiment

SMALL = {**history.SMALL, "iterations": 20}


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("finished"), **SMALL)


@pytest.fixture(scope="module")
def unfinished(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As a kill in the last evaluation leaves it."""
    results = shutil.copytree(finished, tmp_path_factory.mktemp("unfinished") / "results")
    (folder(results) / "summary.json").unlink()
    return results


@pytest.mark.slow
@pytest.mark.parametrize("is_finished", [True, False])
@pytest.mark.parametrize(
    "changes",
    [
        {"iterations": 30},
        {"iterations": 10},
        {"seed": 7},
        {"lr": 5e-4, "iterations": 30, "extend": "rejoin"},
        {"iterations": 30, "extend": "continue", "use_pretrained": "ckpt_5.pt"},
    ],
    ids=str,
)
def test_what_main_py_would_refuse_is_refused_in_its_words(
    finished: Path, unfinished: Path, is_finished: bool, changes: dict[str, Any]
) -> None:
    results = finished if is_finished else unfinished
    with pytest.raises(UserError) as refused:
        preflight.main(["--", *flags(results, **{**SMALL, **changes})])
    said = train(results, **{**SMALL, **changes}).stderr
    assert [f"main.py: error: {line}" for line in str(refused.value).splitlines()] == said.splitlines()


@pytest.mark.slow
@pytest.mark.parametrize("extend", ["continue", "restart", "rejoin"])
def test_an_extension_that_says_how_passes(
    finished: Path, unfinished: Path, extend: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for results in (finished, unfinished):
        assert preflight.main(["--", *flags(results, **{**SMALL, "iterations": 30, "extend": extend})]) == 0
        assert "STATE=unfinished" in capsys.readouterr().out


@pytest.mark.slow
def test_a_damaged_newest_checkpoint_is_passed_over_as_main_py_does(unfinished: Path, tmp_path: Path) -> None:
    results = shutil.copytree(unfinished, tmp_path / "results")
    shutil.copy(folder(results) / "ckpt.pt", folder(results) / "ckpt_15.pt")
    (folder(results) / "ckpt.pt").write_bytes(b"torn")
    with pytest.raises(UserError, match=r"cannot resume .*ckpt_15\.pt: --seed"):
        preflight.main(["--", *flags(results, **{**SMALL, "seed": 7})])


# experiments that were begun under a package's former defaults

FORMERLY = ["--formerly=--seed 2 --eval_freq 200", "--where"]
NOW = ["--seed", "0", "--eval_freq", "100"]


def named(seed: int) -> str:
    return f"lr0.001_bs32x4_seqlen512_seed{seed}"


def asked(
    results: Path, capsys: pytest.CaptureFixture[str], *words: str, options: Sequence[str] = ()
) -> tuple[str, bool, str]:
    """Of a command of a package: the name of the experiment that is meant, whether by the former flags,
    and what is said.
    """
    assert (
        preflight.main(
            [
                *FORMERLY,
                *options,
                "--",
                *NOW,
                "--dataset",
                "stdlib",
                "--results_base_folder",
                str(results),
                *words,
            ]
        )
        == 0
    )
    out, err = capsys.readouterr()
    values = dict(line.split("=", 1) for line in out.splitlines())
    return Path(values["EXPERIMENT"]).name, values["FORMER"] == "1", err


@pytest.mark.parametrize(
    ("there", "words", "meant", "is_former"),
    [
        ([], [], 0, False),
        ([2], [], 2, True),
        ([0], [], 0, False),
        ([0, 2], [], 0, False),
        ([2], ["--seed", "0"], 0, False),
        ([2], ["--seed", "2"], 2, False),
        ([5], ["--seed", "5"], 5, False),
    ],
)
def test_an_experiment_of_the_former_defaults_is_gone_on_with(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    there: list[int],
    words: list[str],
    meant: int,
    is_former: bool,
) -> None:
    for seed in there:
        (tmp_path / "stdlib" / "base" / named(seed)).mkdir(parents=True)
    name, former, said = asked(tmp_path, capsys, *words)
    assert (name, former) == (named(meant), is_former)
    assert said == (
        f"note: going on with --seed 2 --eval_freq 200, with which {named(meant)} was begun; they were the"
        " defaults then\n"
        if is_former
        else ""
    )


@pytest.mark.parametrize("seed", [0, 2])
def test_a_job_goes_on_with_what_it_was_submitted_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], seed: int
) -> None:
    for each in (0, 2):
        (tmp_path / "stdlib" / "base" / named(each)).mkdir(parents=True)
    submitted = tmp_path / "stdlib" / "base" / named(seed)
    assert asked(tmp_path, capsys, options=["--experiment", str(submitted)])[:2] == (named(seed), seed == 2)


@pytest.mark.slow
@pytest.mark.parametrize("is_finished", [True, False])
@pytest.mark.parametrize(
    ("recorded", "words", "is_former"),
    [
        ({"seed": 2, "data_seed": 2, "eval_freq": 200}, [], True),
        ({"seed": 0, "data_seed": 0, "eval_freq": 100}, [], False),
        ({"seed": 5, "data_seed": 5, "eval_freq": 200}, ["--seed", "5"], True),
    ],
)
def test_a_named_experiment_goes_on_as_it_was_recorded(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    is_finished: bool,
    recorded: dict[str, int],
    words: list[str],
    is_former: bool,
) -> None:
    experiment = tmp_path / "stdlib" / "base" / "mine"
    experiment.mkdir(parents=True)
    if is_finished:
        (experiment / "summary.json").write_text(json.dumps({"args": recorded}))
    else:
        torch.save({"itr": 5, "args": recorded}, experiment / "ckpt_5.pt")
    name, former, said = asked(tmp_path, capsys, "--exp_name", "mine", *words)
    assert (name, former) == ("mine", is_former) and ("--seed 2" in said) == (is_former and not words)


@pytest.mark.parametrize("word", ["--help", "--print_config", "--print_config=true"])
def test_what_only_prints_is_not_queued(word: str) -> None:
    with pytest.raises(UserError, match="is nothing to queue"):
        preflight.main(["--", "--n_layer", "6", word])


def test_recipe_word_among_the_flags_of_a_package_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        preflight.main(["--", "--n_layer", "6", "cotformer", "--n_head", "4"])
    assert ended.value.code == 2
    assert "a recipe's name stands before all flags" in capsys.readouterr().err
