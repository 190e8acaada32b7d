"""Calls of the job scripts that are refused in one line, and what a dry run says, on a machine without
SLURM.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.programs import PEER, ROOT, copy_sources, link_programs
from tests.summaries import DEEP, training

PACKAGES = sorted(path.parent.name for path in (ROOT / "iridis").glob("*/job.sh"))
DATASET = {"DATASET": "openwebtext2", "DATA_DIR": str(PEER / "datasets")}


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("calls") / "clone"
    copy_sources(folder)
    return folder


@pytest.fixture(scope="module", autouse=True)
def no_slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(link_programs(tmp_path_factory.mktemp("programs") / "bin")))
        yield


def call(*words: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
    settings = {"VENV_DIR": sys.prefix, "USE_CONDA": "no", "WANDB": "0", **env}
    return subprocess.run(
        list(map(str, words)),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **settings},
        timeout=100,
    )


def job(clone: Path, package: str) -> Path:
    return clone / "iridis" / package / "job.sh"


def is_one_line(done: subprocess.CompletedProcess[str]) -> bool:
    return (
        done.returncode == 2
        and done.stdout == ""
        and done.stderr.startswith("error: ")
        and done.stderr.count("\n") == 1
    )


@pytest.mark.parametrize("package", PACKAGES)
def test_a_copy_as_sbatch_runs_it_says_how_to_call_the_package(
    clone: Path, tmp_path: Path, package: str
) -> None:
    done = call("bash", shutil.copy(job(clone, package), tmp_path / "slurm_script"))
    assert is_one_line(done) and done.stderr.endswith(f"bash iridis/{package}/job.sh\n"), done.stderr


@pytest.mark.parametrize("shell", [["dash"], ["bash", "--posix"]])
@pytest.mark.parametrize(
    "script", ["lncot-train/job.sh", "eval-adm/job.sh", "quickstart/job.sh", "pipeline.sh", "cancel.sh"]
)
def test_another_shell_is_refused(clone: Path, shell: list[str], script: str) -> None:
    if shutil.which(shell[0]) is None:
        pytest.skip(f"no {shell[0]} here")
    done = call(*shell, clone / "iridis" / script)
    assert is_one_line(done) and "bash" in done.stderr, done.stderr


@pytest.mark.parametrize(
    "package", ["lncot-train", "eval-lncot", "quickstart", "extract-tokenize-dataset", "download-dataset"]
)
def test_an_unknown_word_is_refused_and_nothing_is_made(clone: Path, package: str) -> None:
    done = call("bash", job(clone, package), "dry-run", "--checkpoint", clone)
    assert done.returncode == 2 and "unknown word dry-run" in done.stderr.splitlines()[-1], done.stderr
    assert list((clone / "iridis" / package).glob("run_*")) == []


def test_a_symlink_to_a_job_script_is_the_script(clone: Path, tmp_path: Path) -> None:
    (tmp_path / "train").symlink_to(job(clone, "lncot-train"))
    assert "bash iridis/lncot-train/job.sh" in call("bash", tmp_path / "train", "--help").stdout


@pytest.mark.parametrize("script", ["pipeline.sh", "cancel.sh", "fetch-results.sh"])
def test_a_copy_of_a_script_beside_the_packages_says_how_to_call_it(
    clone: Path, tmp_path: Path, script: str
) -> None:
    done = call("bash", shutil.copy(clone / "iridis" / script, tmp_path / "slurm_script"))
    assert is_one_line(done) and done.stderr.endswith(f"bash iridis/{script}\n"), done.stderr


def test_a_symlink_to_fetch_results_is_the_script(clone: Path, tmp_path: Path) -> None:
    (tmp_path / "fetch").symlink_to(clone / "iridis" / "fetch-results.sh")
    assert is_one_line(call("bash", tmp_path / "fetch"))


UNUSED = [
    ("quickstart", "--chain", "3"),
    ("quickstart", "--name", "x"),
    ("quickstart", "--where"),
    ("quickstart", "--checkpoint", "/x"),
    ("lncot-train", "--checkpoint", "/x"),
    ("lncot-train", "--replot"),
    ("eval-lncot", "--chain", "3"),
    ("lncot-train", "--local", "--pin-code"),
    ("lncot-train", "--local", "--after", "5"),
    ("quickstart", "--steps", "5"),
    ("lncot-train", "--steps", "5"),
]


@pytest.mark.parametrize("words", UNUSED, ids=" ".join)
def test_an_option_that_a_package_has_no_use_for_is_refused(clone: Path, words: tuple[str, ...]) -> None:
    done = call("bash", job(clone, words[0]), *words[1:])
    assert is_one_line(done) and list((clone / "iridis" / words[0]).glob("run_*")) == [], done.stderr


@pytest.mark.parametrize("words", [["--pin-code"], ["--where"], ["--chain", "2"]], ids=" ".join)
def test_a_pipeline_refuses_what_it_does_not_do(clone: Path, words: list[str]) -> None:
    assert is_one_line(call("bash", clone / "iridis" / "pipeline.sh", *words))


@pytest.mark.parametrize(
    "words", [["--after", "5"], ["--pin-code"], ["--chain", "2"], ["--where"]], ids=" ".join
)
def test_cancel_refuses_what_it_does_not_do(clone: Path, words: list[str]) -> None:
    done = call("bash", clone / "iridis" / "cancel.sh", *words, "all")
    assert is_one_line(done) and "this takes --dry-run alone" in done.stderr


def test_an_unknown_way_to_go_on_is_refused(clone: Path) -> None:
    done = call("bash", job(clone, "lncot-train"), CHAIN_BY="requee")
    assert is_one_line(done) and "CHAIN_BY" in done.stderr


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


def test_a_step_that_is_missing_is_refused_before_there_is_a_run_folder(clone: Path, tmp_path: Path) -> None:
    done = call(
        "bash", job(clone, "lncot-exp4"), "--checkpoint", tmp_path, "--steps", "40", SCRATCH_DIR=str(tmp_path)
    )
    assert (
        done.returncode == 2
        and f"--steps 40: {tmp_path} has no checkpoint of that step" in done.stderr.splitlines()[-1]
    ), done.stderr
    assert list((clone / "iridis" / "lncot-exp4").glob("run_*")) == []


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


def test_help_of_a_program_is_not_queued(clone: Path, tmp_path: Path) -> None:
    done = call(
        "bash",
        job(clone, "eval-lncot"),
        "--dry-run",
        "--checkpoint",
        tmp_path,
        "--",
        "--help",
        SCRATCH_DIR=str(tmp_path),
    )
    assert done.returncode == 2 and "--help is nothing to queue: python eval.py --help" in done.stderr, (
        done.stderr
    )


def test_where_the_environment_says_posix_the_line_names_the_variable(clone: Path) -> None:
    done = call("bash", job(clone, "quickstart"), POSIXLY_CORRECT="1")
    assert is_one_line(done) and "env -u POSIXLY_CORRECT" in done.stderr


def test_cdpath_does_not_change_where_the_clone_is(clone: Path) -> None:
    done = subprocess.run(
        ["bash", "-c", 'source iridis/env.sh && printf %s "$REPO_DIR"'],
        cwd=clone,
        env={**os.environ, "CDPATH": "."},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout == str(clone)


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


@pytest.mark.parametrize(
    "words", [["cot", "12"], ["cot", "0x5"], ["cot", "12x"], ["base", "12x5"], ["lncot", "12x5"], []]
)
def test_what_is_no_model_is_refused(clone: Path, words: list[str]) -> None:
    assert is_one_line(call("bash", job(clone, "base-train"), *words))


@pytest.mark.parametrize("words", [["ponder"], ["pondernet", "x"], []])
def test_an_unknown_ablation_is_answered_with_those_that_there_are(clone: Path, words: list[str]) -> None:
    done = call("bash", job(clone, "ablation-train"), *words)
    assert is_one_line(done) and done.stderr.endswith(
        "lncot-no-embedding, adm-no-embedding, pondernet, stick-breaking or mixture-of-repeats\n"
    )


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


def test_a_clone_that_is_someone_else_s_is_refused_with_what_to_do(clone: Path, tmp_path: Path) -> None:
    done = call("bash", "-c", f"source '{clone}/iridis/lib.sh'; new_run_dir /proc")
    assert (
        done.returncode == 2
        and done.stderr.startswith("error: cannot make a folder in")
        and "git clone" in done.stderr
    ), done.stderr


def test_an_environment_whose_interpreter_does_not_start_is_refused(clone: Path, tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to("/nowhere/python")
    stamp = call("bash", "-c", f"source '{clone}/iridis/lib.sh'; stamp_of requirements.txt").stdout.strip()
    (tmp_path / stamp).touch()
    done = call("bash", job(clone, "lncot-train"), "--local", VENV_DIR=str(tmp_path))
    assert is_one_line(done) and "/nowhere/python" in done.stderr and "VENV_DIR" in done.stderr, done.stderr


@pytest.mark.parametrize("options", ["--array=1-2", "-a 1-2", "--wait", "-W"])
def test_an_array_or_a_wait_in_the_options_of_sbatch_is_refused(clone: Path, options: str) -> None:
    script = (
        f"source '{clone}/iridis/lib.sh'; PARTITION=p TIME_LIMIT=1 N_NODES=1 N_GPUS=0 CPUS=1 MEMORY=1G AFTER="
        " RUN_DIR=/x; sbatch_words"
    )
    assert is_one_line(call("bash", "-c", script, SBATCH_OPTIONS=options))


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


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A `scontrol` that has forgotten all jobs, as after their MinJobAge."""
    program = tmp_path / "bin" / "scontrol"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\nexit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent), prepend=":")
    return program.parent


def latest_jobs(clone: Path, jobs: str) -> subprocess.CompletedProcess[str]:
    return call(
        "bash",
        "-c",
        f"source '{clone}/iridis/lib.sh'; latest_jobs {jobs}",
        SCRATCH_DIR=str(clone / "scratch"),
    )


def ended_job(clone: Path, number: str, done: bool) -> None:
    run = clone / "iridis" / "quickstart" / f"run_{number}"
    run.mkdir()
    (run / f"slurm_{number}.out").touch()
    if done:
        (run / "done").touch()


def test_a_job_that_succeeded_long_ago_is_not_waited_for(clone: Path, slurm: Path) -> None:
    ended_job(clone, "70", done=True)
    assert (latest_jobs(clone, "70").returncode, latest_jobs(clone, "70").stdout) == (0, "\n")


def test_a_job_that_failed_long_ago_is_refused(clone: Path, slurm: Path) -> None:
    ended_job(clone, "71", done=False)
    done = latest_jobs(clone, "71")
    assert is_one_line(done) and "--after 71: that job has ended as FAILED" in done.stderr


@pytest.mark.parametrize(
    ("state", "code"), [("COMPLETED", 0), ("TIMEOUT", 2), ("CANCELLED by 0", 2), ("OUT_OF_MEMORY", 2)]
)
def test_accounting_tells_of_a_job_that_slurm_has_forgotten(
    clone: Path, slurm: Path, state: str, code: int
) -> None:
    (slurm / "sacct").write_text(f"#!/bin/sh\necho '{state}'\n")
    (slurm / "sacct").chmod(0o755)
    assert latest_jobs(clone, "72").returncode == code


@pytest.mark.parametrize(
    ("state", "expected"),
    [("RUNNING", "73\n"), ("PENDING", "73\n"), ("REQUEUED", "73\n"), ("SUSPENDED", "73\n")],
)
def test_a_job_in_the_queue_is_waited_for(clone: Path, slurm: Path, state: str, expected: str) -> None:
    (slurm / "scontrol").write_text(f"#!/bin/sh\necho 'JobId=73 JobName=x JobState={state} Reason=None'\n")
    assert latest_jobs(clone, "73").stdout == expected
