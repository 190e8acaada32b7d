"""Simulated genomes on disk: the same bytes however they are made, restarts, shards, and what is refused."""

from __future__ import annotations

import json
import re
import signal
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data.genomes.accessibility import NAME, accessibility
from data.genomes.pool import time_left
from data.genomes.scenarios import COLLECTIONS, SPECIES, Scenario, scenarios_of, simulate
from data.genomes.simulate import main, missing
from data.genomes.tree_file import is_whole, write_trees
from tests import programs

tskit = pytest.importorskip("tskit")
pytest.importorskip("msprime")

SMALL = ["--n_individuals", "3", "--sequence_length", "20000", "--num_processes", "1"]


def words(folder: Path, count: int = 3, *more: str) -> list[str]:
    return [*SMALL, "--num_samples", str(count), "--data_dir", str(folder), *more]


def contents(folder: Path) -> dict[str, bytes]:
    """Every tree sequence below a folder, by its path."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.trees")}


def refused(capsys: pytest.CaptureFixture[str], *argv: str) -> list[str]:
    """The lines with which a command line ends."""
    with pytest.raises(SystemExit) as ended:
        main(argv)
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert all(line.startswith("data.genomes.simulate: error: ") for line in lines)
    return [line.removeprefix("data.genomes.simulate: error: ") for line in lines]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three simulations that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    assert main(words(folder)) == 0
    return folder


# files


def test_files_have_the_published_names(whole: Path) -> None:
    assert sorted(contents(whole)) == [f"ts_0000000{number}.trees" for number in range(3)]


def test_no_hidden_file_is_left_that_preparing_would_name(whole: Path) -> None:
    assert not list(whole.rglob(".*"))


def test_a_file_holds_the_simulation_of_its_number(whole: Path) -> None:
    scenario = Scenario("constant", individuals=3, sequence_length=2e4)
    found = tskit.load(whole / "ts_00000002.trees")
    assert found.equals(simulate(scenario, 2), ignore_provenance=True)


def test_provenance_says_what_was_simulated_without_time_or_machine(whole: Path) -> None:
    (provenance,) = tskit.load(whole / "ts_00000001.trees").provenances()
    record = json.loads(provenance.record)
    assert provenance.timestamp == "" and record["parameters"]["number"] == 1
    assert set(record["environment"]) == {"libraries"}
    tskit.provenance.validate_provenance(record)


def test_identifiers_of_files_differ_with_their_content(whole: Path, tmp_path: Path) -> None:
    trees = tskit.load(whole / "ts_00000001.trees")
    write_trees(tmp_path / "same.trees", trees, {"a": 1})
    write_trees(tmp_path / "other.trees", trees, {"a": 2})
    same, other = (tskit.load(tmp_path / name).file_uuid for name in ("same.trees", "other.trees"))
    assert len({same, other, trees.file_uuid}) == 3


@pytest.mark.slow
def test_two_processes_make_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    assert main([*words(tmp_path), "--num-processes", "2"]) == 0
    assert contents(tmp_path) == contents(whole)


def test_a_grid_has_a_folder_for_each_cell(tmp_path: Path) -> None:
    assert main([*words(tmp_path, 1), "--scenario", "llm_ne_constant"]) == 0
    cells = {scenario.folder for scenario in COLLECTIONS["llm_ne_constant"]()}
    assert contents(tmp_path).keys() == {f"{cell}/ts_00000000.trees" for cell in cells}


def test_flags_may_have_dashes(whole: Path, tmp_path: Path) -> None:
    dashed = [word.replace("_", "-") if word.startswith("--") else word for word in words(tmp_path)]
    assert main(dashed) == 0
    assert contents(tmp_path) == contents(whole)


def test_without_a_scenario_or_a_number_nothing_is_simulated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (line,) = refused(capsys)
    assert line.startswith("--scenario is needed, or --num_samples") and not list(tmp_path.iterdir())


def test_what_is_to_come_is_told_before_it_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main(words(tmp_path, 2))
    told = capsys.readouterr().out.splitlines()
    assert told[0] == f"{tmp_path}: 0 of 2 simulations are there already"
    assert told[1].startswith("2 to simulate, with 1 processes, each 20,000 bp of 3 individuals")


def test_a_long_time_is_told_in_hours() -> None:
    assert time_left(30.0, 10, 10_010) == "8:20:00"


# restarts


def test_what_is_there_stays_and_what_is_missing_is_simulated(whole: Path, tmp_path: Path) -> None:
    main(words(tmp_path))
    kept = tmp_path / "ts_00000002.trees"
    before = kept.stat().st_mtime_ns
    (tmp_path / "ts_00000001.trees").unlink()
    assert main(words(tmp_path)) == 0
    assert contents(tmp_path) == contents(whole) and kept.stat().st_mtime_ns == before


def test_a_file_that_is_cut_short_is_simulated_again(
    whole: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(words(tmp_path))
    cut = tmp_path / "ts_00000001.trees"
    cut.write_bytes(cut.read_bytes()[:-100])
    (tmp_path / "ts_00000000.trees").write_bytes(b"")
    capsys.readouterr()
    assert main(words(tmp_path)) == 0
    assert "1 of 3 simulations are there already; 2 are cut short" in capsys.readouterr().out
    assert contents(tmp_path) == contents(whole)


@pytest.mark.slow
def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    argv = [*words(tmp_path / "killed", 100)[:-2], "--num_processes", "2"]
    command = [sys.executable, "-m", "data.genomes.simulate", *argv, "--data_dir", str(tmp_path / "killed")]
    running = programs.start(command)
    while running.poll() is None and len(contents(tmp_path)) < 5:
        time.sleep(0.01)
    running.send_signal(signal.SIGKILL)
    running.wait()
    time.sleep(0.5)  # its workers end with it
    assert 5 <= len(contents(tmp_path)) < 100
    assert all(is_whole(path) for path in tmp_path.rglob("*.trees"))
    (tmp_path / "killed" / ".ts_00000099.trees.4711.tmp").write_bytes(b"half")
    assert main(words(tmp_path / "killed", 100)) == 0
    assert main(words(tmp_path / "undisturbed", 100)) == 0
    assert contents(tmp_path / "killed") == contents(tmp_path / "undisturbed")
    assert list(tmp_path.rglob("*.tmp")) == []


def test_a_larger_number_adds_to_what_is_there(whole: Path, tmp_path: Path) -> None:
    main(words(tmp_path, 1))
    assert main(words(tmp_path, 3)) == 0
    assert contents(tmp_path) == contents(whole)


def test_other_simulations_are_refused_in_a_folder(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = contents(whole)
    (line,) = refused(capsys, *words(whole), "--ne", "1e4")
    assert line.startswith(f"{whole} holds other simulations: population_size 20000.0 there, 10000.0 here;")
    assert contents(whole) == before


def test_simulations_of_unknown_origin_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "ts_00000000.trees").write_bytes(b"mine")
    (line,) = refused(capsys, *words(tmp_path))
    assert "no simulation.json" in line and contents(tmp_path) == {"ts_00000000.trees": b"mine"}


# shards


def test_shards_make_together_what_one_run_makes(
    whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for task in ("0", "1"):
        monkeypatch.setenv("SLURM_ARRAY_TASK_ID", task)
        assert main([*words(tmp_path), "--shards", "2"]) == 0
    assert contents(tmp_path) == contents(whole)


@pytest.mark.parametrize("shards", [1, 2, 7, 400])
def test_each_simulation_is_in_one_shard(tmp_path: Path, shards: int) -> None:
    scenarios = scenarios_of("tiny")
    parts = [missing(tmp_path, scenarios, shard, shards).jobs for shard in range(shards)]
    paths = [job.path for part in parts for job in part]
    assert len(paths) == len(set(paths)) == 340
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_state_is_done_when_all_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    states = []
    for shard in ("0", "1"):
        main([*words(tmp_path), "--shards", "2", "--shard", shard])
        capsys.readouterr()
        main([*words(tmp_path), "--state"])
        states.append(capsys.readouterr().out)
    assert states == ["todo\n", "done\n"]


# collections


def test_tiny_also_gets_a_mask(tmp_path: Path) -> None:
    assert main([*words(tmp_path, 1), "--scenario", "tiny"]) == 0
    assert len(contents(tmp_path)) == 5
    assert np.array_equal(np.load(tmp_path / NAME), accessibility(1_000_000))


def test_the_mask_of_a_user_is_kept(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"mine")
    main([*words(tmp_path, 1), "--scenario", "tiny"])
    assert (tmp_path / NAME).read_bytes() == b"mine"


def test_about_a_quarter_of_a_mask_is_missing() -> None:
    assert 0.25 < 1 - accessibility(1_000_000).mean() < 0.29


def test_no_two_scenarios_of_the_paper_share_a_folder() -> None:
    folders = [scenario.folder for scenario in scenarios_of("paper")]
    assert len(folders) == len(set(folders)) == 3 + 81 + len(SPECIES)


# species


@pytest.mark.parametrize(
    ("name", "species", "genetic_map", "size"),
    [
        ("stdpopsim:homsap_map", "HomSap", "HapMapII_GRCh38", None),
        ("stdpopsim_drosec", "DroSec", None, 100_000),
        ("stdpopsim:DroMel/ComeronCrossoverV2_dm6", "DroMel", "ComeronCrossoverV2_dm6", None),
    ],
)
def test_a_species_has_a_published_name_or_that_of_stdpopsim(
    name: str, species: str, genetic_map: str | None, size: float | None
) -> None:
    (scenario,) = scenarios_of(name)
    assert (scenario.species, scenario.genetic_map, scenario.population_size) == (species, genetic_map, size)


@pytest.mark.parametrize("name", ["msprime", "stdpopsim"])
def test_a_missing_package_is_told_in_a_line(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    scenario = {"msprime": "constant", "stdpopsim": "stdpopsim:HomSap"}[name]
    (line,) = refused(capsys, *words(tmp_path, 1), "--scenario", scenario)
    assert re.fullmatch(
        f"{name} is not installed: .*pip install .*(genomes.txt -c constraints.txt|stdpopsim)", line
    )


@pytest.mark.parametrize("species", ["HomSap", "drosec"])
def test_a_species_is_simulated_in_the_same_bytes_again(species: str, tmp_path: Path) -> None:
    pytest.importorskip("stdpopsim")
    for name in ("a", "b"):
        assert main([*words(tmp_path / name, 1), "--scenario", f"stdpopsim:{species}"]) == 0
    assert contents(tmp_path / "a") == contents(tmp_path / "b")


# what is refused


@pytest.mark.parametrize(
    ("argv", "problem"),
    [
        (
            ["--scenario", "sawtoth"],
            "unknown scenario 'sawtoth' (did you mean sawtooth?); there are constant,",
        ),
        (["--scenario", "stdpopsim:"], "unknown scenario 'stdpopsim:'"),
        (["--num_samples", "0"], "--num_samples must be at least 1, not 0"),
        (["--num_samples", "1e9"], "--num_samples: invalid int value: '1e9'"),
        (["--num_samples", "1000000000"], "--num_samples must be at most 100,000,000"),
        (["--num_processes", "0"], "--num_processes must be at least 1, not 0"),
        (["--n_individuals", "0"], "--n_individuals must be at least 1, not 0"),
        (["--sequence_length", "nan"], "--sequence_length must be at least 1, not nan"),
        (["--sequence_length", "10.5"], "--sequence_length must be a whole number, not 10.5"),
        (["--mu=-1e-8"], "--mutation_rate must be at least 0, not -1e-08"),
        (["--ne", "0"], "--population_size must be above 0"),
        (["--ne", "inf"], "--population_size must be at least 0, not inf"),
        (["--magnitude", "3"], "--magnitude has no effect on constant"),
        (["--scenario", "llm-grid", "--ne", "1e4"], "--population_size: llm-grid has its own"),
        (["--scenario", "sweep", "--position", "3e6"], "--position must be within the sequence, of 1e+06 bp"),
        (["--shards", "2"], "--shards needs --shard, or an array of SLURM jobs"),
        (["--shards", "2", "--shard", "2"], "--shard must be below --shards, 2"),
        (["--shard", "-1"], "--shard must be at least 0, not -1"),
        (["--num_proceses", "2"], "unknown flag --num_proceses (did you mean --num_processes?)"),
        (["constant"], "unexpected argument 'constant'"),
    ],
)
def test_a_bad_command_line_is_refused_in_a_line_and_nothing_is_made(
    argv: list[str], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (line,) = refused(capsys, "--data_dir", str(tmp_path / "new"), *argv)
    assert line.startswith(problem) and not (tmp_path / "new").exists()


def test_all_bad_values_are_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert len(refused(capsys, "--num_samples", "0", "--shards", "0", "--mu", "nan")) == 3


def test_simulations_that_fail_are_counted_and_shown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    *shown, count = refused(capsys, *words(tmp_path, 7), "--scenario", "sweep", "--ne", "1")
    assert count == "7 simulations failed" and len(shown) == 5
    assert shown[0].startswith(f"{tmp_path}/ts_00000000.trees: ") and contents(tmp_path) == {}


def test_where_all_fail_it_stops(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = refused(capsys, *words(tmp_path, 2000), "--scenario", "sweep", "--ne", "1")
    assert lines[-1] == "20 simulations failed already, so it stops"


def test_a_folder_that_is_a_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("mine")
    (line,) = refused(capsys, *words(tmp_path / "file"))
    assert str(tmp_path / "file") in line and (tmp_path / "file").read_text() == "mine"
