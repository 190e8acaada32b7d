"""What dry runs of the job scripts show, and what an evaluation leaves, on a machine without SLURM."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from tests.job_calls import DATASET, call, is_one_line, job
from tests.programs import PEER
from tests.summaries import DEEP, training

pytestmark = pytest.mark.usefixtures("no_slurm")


def programs_of(said: str) -> list[str]:
    """The programs that a dry run shows, in their order."""
    found = [line.split()[1:3] for line in said.splitlines() if line.startswith("python ")]
    return [words[1] if words[0] == "-m" else words[0] for words in found]


@pytest.mark.slow
def test_a_dry_run_of_an_evaluation_shows_all_that_it_would_run(clone: Path, tmp_path: Path) -> None:
    done = call(
        "bash",
        job(clone, "eval-adm"),
        "--dry-run",
        "--checkpoint",
        tmp_path,
        "--",
        "--eval_sample_size",
        "48",
        SCRATCH_DIR=str(tmp_path),
    )
    assert programs_of(done.stdout) == [
        "eval.py",
        "get_ppl_per_mac.py",
        "get_router_weights.py",
        "plot_fig4.py",
        "plot_fig5.py",
        "report",
    ]
    assert (
        done.stdout.count("--eval_sample_size 48") == 3
        and f"--output_dir {clone / 'iridis' / 'eval-adm' / 'run_N'}" in done.stdout
    )


@pytest.mark.slow
def test_figure_4_of_several_checkpoints_is_a_sweep_of_each(clone: Path, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / name).mkdir()
    done = call(
        "bash",
        job(clone, "lncot-exp4"),
        "--dry-run",
        "--checkpoint",
        f"v1={tmp_path}/a",
        f"v2={tmp_path}/b",
        SCRATCH_DIR=str(tmp_path),
    )
    assert programs_of(done.stdout) == [
        "get_ppl_per_mac.py",
        "get_ppl_per_mac.py",
        "plot_fig4.py",
    ], done.stderr
    assert all(f"run_N/{name} " in done.stdout for name in ("v1", "v2"))


@pytest.fixture(scope="module")
def evaluated(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The run folder of eval-adm of two steps of a checkpoint of the authors, twice, and what was printed."""
    scratch = tmp_path_factory.mktemp("evaluated")
    adaptive = next((PEER / "exps" / "owt2").glob("adaptive*")) / "official_adm"
    done = call(
        "bash",
        job(clone, "eval-adm"),
        "--local",
        "--checkpoint",
        f"v1={adaptive}",
        f"v2={adaptive}",
        "--steps",
        "75",
        "150",
        "--",
        "--device",
        "cpu",
        "--eval_sample_size",
        "48",
        FIGURE_4="0",
        SCRATCH_DIR=str(scratch),
        DATA_DIR=str(PEER / "datasets"),
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.splitlines()[0].removeprefix("run folder: ")), done.stderr


@pytest.mark.slow
def test_results_are_by_label_and_step(evaluated: tuple[Path, str]) -> None:
    for label in ("v1", "v2"):
        names = sorted(path.name for path in (evaluated[0] / label).iterdir())
        summaries = [
            f"eval_summary_ckpt{step}.{kind}" for step in ("", "_150", "_75") for kind in ("json", "npz")
        ]
        assert names == ["eval.txt", "eval_150.txt", "eval_75.txt", *summaries, "exp5"]


@pytest.mark.slow
def test_names_without_a_step_are_those_of_the_final_checkpoint(evaluated: tuple[Path, str]) -> None:
    folder = evaluated[0] / "v1"
    assert json.loads((folder / "eval_summary_ckpt.json").read_text())["itr"] == 150
    assert (
        (folder / "eval.txt").read_text()
        == (folder / "eval_150.txt").read_text()
        != (folder / "eval_75.txt").read_text()
    )


@pytest.mark.slow
def test_figure_5_is_drawn_of_all_and_of_each(evaluated: tuple[Path, str]) -> None:
    run_dir, _ = evaluated
    files = {
        place: json.loads((run_dir / place / "fig5.json").read_text())["rows"][0]["files"]
        for place in (".", "v2/exp5")
    }
    assert [one["label"] for one in files["."]] == [
        "v1, 75 steps",
        "v1, 150 steps",
        "v2, 75 steps",
        "v2, 150 steps",
    ]
    assert [one["label"] for one in files["v2/exp5"]] == ["v2, 75 steps", "v2, 150 steps"]


@pytest.mark.slow
def test_an_evaluation_says_that_it_reads_data_elsewhere_than_they_were(evaluated: tuple[Path, str]) -> None:
    assert f"reading them below DATA_DIR, {PEER / 'datasets'}" in evaluated[1]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "flag", "program"),
    [("eval-lncot", "--nonsense", "eval.py"), ("lncot-exp4", "--cascade", "get_ppl_per_mac.py")],
)
def test_a_flag_that_an_evaluation_would_refuse_is_refused_before_it_is_queued(
    clone: Path, tmp_path: Path, package: str, flag: str, program: str
) -> None:
    done = call(
        "bash",
        job(clone, package),
        "--dry-run",
        "--checkpoint",
        tmp_path,
        "--",
        flag,
        "raw",
        SCRATCH_DIR=str(tmp_path),
    )
    assert done.returncode == 2 and f"{program}: error: unknown flag {flag}" in done.stderr, done.stderr


@pytest.mark.parametrize("size", ["12x15", "12x6", "7x1"])
@pytest.mark.slow
def test_any_number_of_layers_and_repeats_is_a_model(clone: Path, tmp_path: Path, size: str) -> None:
    layers, repeats = size.split("x")
    done = call(
        "bash",
        job(clone, "base-train"),
        "cot",
        size,
        "--local",
        "--dry-run",
        **DATASET,
        SCRATCH_DIR=str(tmp_path),
    )
    assert f"--n_layer {layers} --n_repeat {repeats} --min_repeat {repeats}" in done.stdout, done.stderr


def experiment(
    results: Path,
    name: str,
    iterations: int = 40000,
    dataset: str = "owt2",
    checkpoint: str = "ckpt.pt",
    **flags: object,
) -> Path:
    """A finished training, as far as evaluations look at it before they start."""
    folder = results / dataset / name
    training(folder, iterations=iterations, dataset=dataset, **flags)
    (folder / checkpoint).touch()
    return folder


def checkpoints_of(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The checkpoints that a dry run would evaluate."""
    return [line.removeprefix("=== ") for line in done.stdout.splitlines() if line.startswith("=== ")]


def test_eval_base_finds_what_is_trained_and_says_which_rows_are_missing(clone: Path, tmp_path: Path) -> None:
    results = tmp_path / "exps"
    wanted = [
        experiment(results, "a", model="base", n_layer=12),
        experiment(results, "a b", model="but", n_layer=12, n_repeat=2),
        experiment(results, "group/c", model="cot", n_layer=24, n_repeat=5),
        experiment(results, "d", model="pondernet", **DEEP),
        experiment(results, "small", iterations=7, model="base", n_layer=24),
    ]
    experiment(results, "reserved", model="cot", **DEEP)
    experiment(results, "embedding", model="lncot", depth_embedding="linear_learned", **DEEP)
    experiment(results, "elsewhere", dataset="stdlib", model="base", n_layer=24)
    experiment(results, "unfinished", checkpoint="ckpt_9.pt", model="base", n_layer=24)
    (results / "owt2" / "damaged").mkdir()
    (results / "owt2" / "damaged" / "summary.json").write_text("{")
    done = call(
        "bash", job(clone, "eval-base"), "--dry-run", RESULTS_DIR=str(results), SCRATCH_DIR=str(tmp_path)
    )
    assert done.returncode == 0 and sorted(checkpoints_of(done)) == sorted(map(str, wanted)), done.stderr
    (note,) = [line for line in done.stderr.splitlines() if line.startswith("note: ")]
    assert (
        note.startswith("note: not trained of Table 1: Standard 24, Standard 48, Block Universal 12x3, ")
        and note.count(",") == 11
    )
    assert "warning: summary.json: " in done.stderr
    programs = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("python ")]
    assert programs == [*["eval.py"] * 5, "plot_fig2.py", "plot_fig3.py", "-m"]


@pytest.mark.parametrize(
    ("words", "package"), [(["cot", "12x5"], "base-train"), (["stick-breaking"], "ablation-train")]
)
def test_eval_base_evaluates_the_model_that_its_training_would_train(
    clone: Path, tmp_path: Path, words: list[str], package: str
) -> None:
    where = call("bash", job(clone, package), "--where", *words, SCRATCH_DIR=str(tmp_path)).stdout.strip()
    missing = call("bash", job(clone, "eval-base"), "--dry-run", *words, SCRATCH_DIR=str(tmp_path))
    assert (
        missing.returncode == 2
        and f"there is no checkpoint {where}; train it (iridis/{package}/job.sh)" in missing.stderr
    )
    Path(where).mkdir(parents=True)
    assert checkpoints_of(
        call("bash", job(clone, "eval-base"), "--dry-run", *words, SCRATCH_DIR=str(tmp_path))
    ) == [where]


def test_eval_base_refuses_where_nothing_is_trained(clone: Path, tmp_path: Path) -> None:
    done = call("bash", job(clone, "eval-base"), "--state", SCRATCH_DIR=str(tmp_path))
    assert is_one_line(done) and "nothing is trained" in done.stderr, done.stderr
    (tmp_path / "exps").mkdir()
    done = call("bash", job(clone, "eval-base"), "--state", SCRATCH_DIR=str(tmp_path))
    assert (
        done.returncode == 2 and done.stderr.count("\n") == 1 and "is trained on owt2 below" in done.stderr
    ), done.stderr


@pytest.mark.slow
def test_a_dry_run_without_slurm_shows_the_command_of_a_training(clone: Path, tmp_path: Path) -> None:
    done = call("bash", job(clone, "lncot-train"), "--dry-run", **DATASET, SCRATCH_DIR=str(tmp_path))
    assert (
        done.returncode == 0
        and "python main.py --seed 0 --eval_freq 100 --dataset openwebtext2" in done.stdout
    ), done.stderr


def begun_formerly(clone: Path, scratch: Path, **env: str) -> Path:
    """The folder of an experiment of lncot-train that was begun under other defaults."""
    done = call(
        "bash", job(clone, "lncot-train"), "--where", **DATASET, **env, SEED="2", SCRATCH_DIR=str(scratch)
    )
    folder = Path(done.stdout.strip())
    folder.mkdir(parents=True)
    return folder


@pytest.mark.slow
def test_a_training_that_began_under_other_defaults_goes_on_with_them(clone: Path, tmp_path: Path) -> None:
    folder = begun_formerly(clone, tmp_path)
    done = call(
        "bash", job(clone, "lncot-train"), "--local", "--dry-run", **DATASET, SCRATCH_DIR=str(tmp_path)
    )
    assert folder.name.endswith("_seed2") and "main.py --seed 2 --eval_freq 200 --dataset" in done.stdout, (
        done.stderr
    )
    assert (
        done.stderr.count(f"going on with --seed 2 --eval_freq 200, with which {folder.name} was begun") == 1
    )


@pytest.mark.slow
def test_a_seed_of_the_environment_begins_another_training(clone: Path, tmp_path: Path) -> None:
    begun_formerly(clone, tmp_path)
    done = call(
        "bash",
        job(clone, "lncot-train"),
        "--local",
        "--dry-run",
        **DATASET,
        SEED="0",
        SCRATCH_DIR=str(tmp_path),
    )
    assert "main.py --eval_freq 100 --seed 0 --dataset" in done.stdout and "going on" not in done.stderr, (
        done.stderr
    )


@pytest.mark.slow
def test_an_evaluation_is_of_the_training_that_began_under_other_defaults(
    clone: Path, tmp_path: Path
) -> None:
    folder = begun_formerly(clone, tmp_path)
    done = call("bash", job(clone, "eval-lncot"), "--dry-run", **DATASET, SCRATCH_DIR=str(tmp_path))
    assert f"--checkpoint {folder} " in done.stdout, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "env", "words"),
    [
        ("adm-train", {}, "--keep_steps 40000 "),
        ("lncot-train", {"KEEP_STEPS": "100 2000"}, "--keep_steps 100 2000 "),
        ("adm-train", {"KEEP_STEPS": ""}, ""),
    ],
)
def test_a_training_keeps_the_steps_of_its_configuration(
    clone: Path, tmp_path: Path, package: str, env: dict[str, str], words: str
) -> None:
    done = call(
        "bash", job(clone, package), "--local", "--dry-run", **DATASET, **env, SCRATCH_DIR=str(tmp_path)
    )
    assert done.returncode == 0 and words in done.stdout and ("keep_steps" in done.stdout) == bool(words), (
        done.stderr
    )


@pytest.mark.slow
def test_a_dry_run_without_slurm_tells_that_there_is_no_checkpoint(clone: Path, tmp_path: Path) -> None:
    done = call("bash", job(clone, "eval-lncot"), "--dry-run", **DATASET, SCRATCH_DIR=str(tmp_path))
    assert done.returncode == 2 and "there is no checkpoint" in done.stderr, done.stdout
