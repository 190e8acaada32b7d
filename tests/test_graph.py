"""Graphs of jobs: what their tables mean, which tables are refused, and the tree that is shown without
SLURM.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import config
from errors import UserError
from files import write_json
from iridis import graph
from iridis.graph import Call, Stage
from report.rows import ROWS
from tests.programs import PEER, ROOT, link_programs

TABLES = ", ".join(graph.table_names())
ALONE = "a pipeline takes --dry-run, --local and --size alone; flags for every training go after --"
TRAIN = "a\t-\tlncot-train\t-- @flags\n"
PAPER = [
    "download",
    "tokenise",
    "cot-res",
    "lncot",
    "lncot-60k",
    "adm",
    "eval-cot-res",
    "eval-lncot",
    "eval-lncot-60k",
    "eval-adm",
    "lncot-exp4",
]


@pytest.fixture
def table(tmp_path: Path) -> Callable[..., str]:
    """Writes a table and returns its path."""

    def write(text: str, name: str = "mine.tsv") -> str:
        (tmp_path / name).write_text(text)
        return str(tmp_path / name)

    return write


def problems(path: str) -> list[str]:
    """What is said of a wrong table, without its path."""
    with pytest.raises(UserError) as refused:
        graph.load(path)
    return [line.replace(f"{path}:", "") for line in str(refused.value).splitlines()]


# the project's tables


@pytest.mark.parametrize("name", graph.table_names())
def test_each_table_of_the_project_is_right(name: str) -> None:
    assert graph.load(name)


def test_the_table_in_the_documentation_is_right(table: Callable[..., str]) -> None:
    blocks = (ROOT / "docs" / "cluster.md").read_text().split("```")
    (example,) = [block for block in blocks if block.startswith("\n# stage\t")]
    assert [stage.name for stage in graph.load(table(example))] == ["small", "score"]


def test_reproduce_has_the_stages_of_the_paper_in_the_order_in_which_they_are_queued() -> None:
    assert [stage.name for stage in graph.in_order(graph.load("reproduce"))] == PAPER


def jobs(*tables: str) -> set[str]:
    """What trains the rows of these tables."""
    return {row.job for row in ROWS if row.table in tables}


def test_all_is_reproduce_and_the_models_of_the_other_tables_and_their_evaluations() -> None:
    stages = graph.load("all")
    assert stages[: len(PAPER)] == graph.load("reproduce")
    more = stages[len(PAPER) :]
    trained = {
        " ".join(
            [*(f"{name}={value}" for name, value in stage.settings), stage.package, *stage.words[:-2]]
        ): stage.name
        for stage in more
        if stage.package != "eval-base"
    }
    assert trained.keys() == (jobs("Table 1") | jobs("Table 4", "Table 5")) - {"lncot-train"}
    evaluated = {stage.name: stage for stage in more if stage.package == "eval-base"}
    assert {name for stage in evaluated.values() for name in stage.after} == set(trained.values())
    assert all(stage.uses == list(stage.after) for stage in evaluated.values())
    assert set(evaluated["eval-base"].after) == {trained[job] for job in jobs("Table 1")}


def test_flags_reach_every_training_and_nothing_else() -> None:
    given = {stage.name for stage in graph.load("all") if graph.FLAGS in stage.words}
    assert given == {stage.name for stage in graph.load("all") if graph.is_training(stage.package)}


def test_data_stages_do_not_take_the_resources_that_are_given_for_trainings() -> None:
    unset = {"PARTITION": "", "N_GPUS": "", "CPUS": "", "MEMORY": "", "TIME_LIMIT": ""}
    stages = {stage.name: dict(stage.settings) for stage in graph.load("reproduce")}
    assert (stages["download"], stages["tokenise"], stages["lncot-60k"]) == (
        unset,
        unset,
        {"ITERATIONS": "60000"},
    )


# what a line means


def test_a_line_is_read_into_its_four_columns(table: Callable[..., str]) -> None:
    path = table(
        "# a comment\n\n"
        + TRAIN
        + "b\t a, a \tlncot-train\tX=1 Y= EMPTY='' --name 'two words' -- @flags --note Z=3\n"
    )
    assert graph.load(path) == [
        Stage("a", (), "lncot-train", (), ("--", "@flags"), f"{path}:3"),
        Stage(
            "b",
            ("a",),
            "lncot-train",
            (("X", "1"), ("Y", ""), ("EMPTY", "")),
            ("--name", "two words", "--", "@flags", "--note", "Z=3"),
            f"{path}:4",
        ),
    ]


def test_stages_may_wait_for_several_by_spaces_or_commas(table: Callable[..., str]) -> None:
    stages = graph.load(
        table("a\t-\tquickstart\t-\nb\t-\tquickstart\t-\nc\ta b\tquickstart\t-\nd\tb,a\tquickstart\t-\n")
    )
    assert [stage.after for stage in stages] == [(), (), ("a", "b"), ("b", "a")]


def test_settings_are_put_into_the_environment_and_empty_ones_taken_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PARTITION", "a100")
    monkeypatch.setenv("MEMORY", "1G")
    values = graph.environment(
        Stage("a", (), "lncot-train", (("PARTITION", ""), ("ITERATIONS", "7")), (), "")
    )
    assert ("PARTITION" in values, values["ITERATIONS"], values["MEMORY"]) == (False, "7", "1G")


def test_folders_and_flags_are_filled_in_word_by_word() -> None:
    call = Call(["--lr", "1 2"], {"narrow": "/exps/it's narrow"})
    assert call.arguments(
        Stage(
            "wide",
            ("narrow",),
            "lncot-train",
            (),
            ("--name", "w", "--", "--init_from", "@narrow", "@flags"),
            "",
        )
    ) == ["--name", "w", "--", "--init_from", "/exps/it's narrow", "--lr", "1 2"]


def test_a_table_may_include_one_of_the_project_and_one_beside_it(table: Callable[..., str]) -> None:
    table(TRAIN, "other.tsv")
    stages = graph.load(table("include reproduce\ninclude other.tsv\nb\ta adm\teval-adm\t--checkpoint @a\n"))
    assert [stage.name for stage in stages] == [*PAPER, "a", "b"]


def test_stages_are_put_in_order_whatever_their_lines(table: Callable[..., str]) -> None:
    stages = graph.load(table("c\tb\tquickstart\t-\nb\ta\tquickstart\t-\na\t-\tquickstart\t-\n"))
    assert [stage.name for stage in graph.in_order(stages)] == ["a", "b", "c"]


def test_a_stage_s_folder_may_have_a_label(table: Callable[..., str]) -> None:
    stages = graph.load(
        table(
            "include reproduce\nboth\tadm lncot\teval-adm\t--checkpoint v1=@adm v2=@lncot --steps 40000"
            " 60000\n"
        )
    )
    both = next(stage for stage in stages if stage.name == "both")
    assert both.uses == ["adm", "lncot"]
    words = graph.Call([], {"adm": "/exps/a b", "lncot": "/exps/c"}).arguments(both)
    assert words == ["--checkpoint", "v1=/exps/a b", "v2=/exps/c", "--steps", "40000", "60000"]


# wrong tables


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("b\t-\tlncot-train", "3 columns instead of 4 (stage, after, package, words); tabs separate them"),
        ("b - lncot-train -", "1 columns instead of 4 (stage, after, package, words); tabs separate them"),
        (
            "b\t-\tlncot-train\t-\t",
            "5 columns instead of 4 (stage, after, package, words); tabs separate them",
        ),
        (
            "b c\t-\tlncot-train\t-",
            (
                "'b c' cannot be the name of a stage: letters, digits and ._- make one, and @flags has"
                " another meaning"
            ),
        ),
        (
            "flags\t-\tlncot-train\t-",
            (
                "'flags' cannot be the name of a stage: letters, digits and ._- make one, and @flags has"
                " another meaning"
            ),
        ),
        ("b\t-\tlncot-train\t--name 'b", """words "--name 'b" cannot be told apart: No closing quotation"""),
        ("b\t-\tlncot-train\t--name b ITERATIONS=3", "ITERATIONS=3: settings come before arguments"),
        (
            "b\ta\tlncot-train\t-- --init_from=@a",
            "--init_from=@a: what begins with @ must be a word of its own",
        ),
        ("b\ta\tlncot-train\tINIT=@a -- @flags", "INIT=@a: settings take no @"),
        ("b\tc\tlncot-train\t-", "b waits for c, which is no stage"),
        ("b\ta\teval-lncot\t--checkpoint @c", "@c: there is no stage c"),
        ("b\t-\teval-lncot\t--checkpoint @a", "@a: b does not wait for a; name it in its second column"),
        ("b\tb\tlncot-train\t-", "these stages wait for each other: b"),
        ("a\t-\tlncot-train\t-", "stage a is there already: 1"),
        ("include mine.tsv", "mine.tsv includes itself"),
        ("include everything", f"unknown pipeline everything; there are {TABLES}"),
    ],
)
def test_a_wrong_line_is_refused_with_its_number(table: Callable[..., str], line: str, problem: str) -> None:
    assert problems(table(f"{TRAIN}\n{line}\n")) == [f"3: {problem}"]


def test_an_unknown_package_is_refused_with_those_that_there_are(table: Callable[..., str]) -> None:
    (line,) = problems(table("a\t-\tlncot\t-\n"))
    assert (
        line.startswith("1: there is no package 'lncot'; there are ablation-train, adm-train, base-train, ")
        and "lncot-train" in line
    )


def test_what_trains_nothing_has_no_folder(table: Callable[..., str]) -> None:
    path = table("a\t-\tdownload-dataset\t--full\nb\ta\teval-lncot\t--checkpoint @a\n")
    assert problems(path) == ["2: @a: download-dataset trains nothing, so it has no experiment folder"]


def test_a_cycle_is_told_with_its_stages(table: Callable[..., str]) -> None:
    (line,) = problems(table("a\tc\tquickstart\t-\nb\ta\tquickstart\t-\nc\tb\tquickstart\t-\n"))
    place, _, names = line.partition(": these stages wait for each other: ")
    assert place in "123" and sorted(names.split(", ")) == ["a", "b", "c"]


def test_all_that_is_wrong_is_told_at_once(table: Callable[..., str]) -> None:
    assert len(problems(table("a\tx\tquickstart\t-\nb\ty\tquickstart\t@z\n"))) == 3
    assert len(problems(table("a\n-\t-\tquickstart\tA=@b --c=@d\n"))) == 4


def test_a_table_without_stages_is_refused(table: Callable[..., str]) -> None:
    path = table("# nothing\n")
    assert problems(path) == [f"{path} has no stage"]


# the tree


def test_tree_shows_each_stage_once_below_the_last_that_it_waits_for(table: Callable[..., str]) -> None:
    path = table(
        "data\t-\textract-tokenize-dataset\t-\nnarrow\tdata\tlncot-train\t--"
        " @flags\nwide\tdata\tlncot-train\t-- @flags\nscore\tnarrow wide\teval-lncot\t--checkpoint @narrow"
        " --checkpoint @wide\nother\t-\tquickstart\t-\n"
    )
    assert graph.tree(
        graph.load(path),
        {"data": "done", "narrow": "1234", "wide": "new", "score": "blocked", "other": "new"},
    ) == [
        "stage        state    package",
        "data         done     extract-tokenize-dataset",
        "├─ narrow    1234     lncot-train",
        "└─ wide      new      lncot-train",
        "   └─ score  blocked  eval-lncot, after narrow, wide",
        "other        new      quickstart",
    ]


def test_a_stage_that_waits_for_many_is_shown_with_their_number(table: Callable[..., str]) -> None:
    names = [f"s{number}" for number in range(7)]
    path = table(
        "".join(f"{name}\t-\tquickstart\t-\n" for name in names) + f"end\t{' '.join(names)}\tquickstart\t-\n"
    )
    assert (
        graph.tree(graph.load(path), dict.fromkeys([*names, "end"], "new"))[-1]
        == "└─ end  new    quickstart, after 7 stages"
    )


# queueing


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two packages: `good` says that it has queued job 12, and its arguments into `calls`; `bad` refuses."""
    for name, said in (
        ("good", 'echo "$*" >>"${0%/*}/../calls"; echo "job:          12 (good)"'),
        ("bad", "echo 'error: no' >&2; exit 2"),
    ):
        (tmp_path / name).mkdir()
        (tmp_path / name / "job.sh").write_text(f"{said}\n")
    monkeypatch.setattr(graph, "IRIDIS", tmp_path)
    return tmp_path


def stage(name: str, after: str, package: str = "good") -> Stage:
    return Stage(name, tuple(after.split()), package, (), (name,), "")


def test_stages_are_queued_behind_the_jobs_of_those_that_they_wait_for(packages: Path) -> None:
    states = {"finished": "done", "running": "7", "other": "8", "first": "new", "second": "new"}
    stages = [
        stage("second", "first running other finished"),
        stage("finished", ""),
        stage("running", ""),
        stage("other", ""),
        stage("first", "finished"),
    ]
    assert graph.queue(stages, Call([], {}), states) == []
    assert (packages / "calls").read_text() == "first\n--after 12:7:8 second\n"
    assert states == {"finished": "done", "running": "7", "other": "8", "first": "12", "second": "12"}


def test_what_waits_for_a_stage_that_could_not_be_queued_is_not_queued(packages: Path) -> None:
    states = {"a": "new", "b": "new", "c": "new", "d": "done", "e": "new"}
    stages = [stage("a", "", "bad"), stage("b", "a"), stage("c", "b"), stage("d", "a"), stage("e", "d")]
    assert graph.queue(stages, Call([], {}), states) == [
        "stage a is not queued: bad/job.sh ended with code 2, see above",
        "stage b is not queued: it waits for a",
        "stage c is not queued: it waits for b",
    ]
    assert states == {"a": "failed", "b": "blocked", "c": "blocked", "d": "done", "e": "12"}


def test_folders_of_trainings_are_those_that_they_say_themselves(packages: Path) -> None:
    (packages / "train").mkdir()
    (packages / "train" / "job.sh").write_text('echo "/exps/$ITERATIONS/$*" # run_training\n')
    wide = Stage("wide", ("narrow",), "train", (), ("--", "--init_from", "@narrow", "@flags"), "")
    narrow = Stage("narrow", (), "train", (("ITERATIONS", "5"),), ("--name", "n"), "")
    use = Stage("use", ("wide",), "good", (), ("--checkpoint", "@wide"), "")
    folders = {"narrow": "/exps/5/--where --name n"}
    assert graph.experiment_folders([use, wide, narrow], ["--lr", "1"]) == {
        **folders,
        "wide": f"/exps//--where -- --init_from {folders['narrow']} --lr 1",
    }


@pytest.mark.slow
def test_two_stages_that_train_one_experiment_are_refused_in_a_line(
    table: Callable[..., str], without_slurm: dict[str, str]
) -> None:
    twice = "a\t-\tlncot-train\t--name one -- @flags\nb\ta\tlncot-train\tCKPT_FREQ=7 --name one -- @flags\n"
    done = pipeline(without_slurm, table(twice), "--dry-run")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert ":2: stage b trains the experiment of stage a, " in done.stderr


# the door, on a machine without SLURM


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of links to the machine's programs but SLURM's."""
    return link_programs(tmp_path_factory.mktemp("programs") / "bin")


@pytest.fixture
def without_slurm(programs: Path, tmp_path: Path) -> dict[str, str]:
    """The environment of a machine that has no SLURM, and results of the test's own."""
    return {
        **os.environ,
        "PATH": str(programs),
        "VENV_DIR": sys.prefix,
        "USE_CONDA": "no",
        "SCRATCH_DIR": str(tmp_path / "scratch"),
        "DATA_DIR": str(PEER / "datasets"),
        "DATASET": "openwebtext2",
        "OMP_NUM_THREADS": "1",
    }


def pipeline(env: dict[str, str], *words: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    bash = str(shutil.which("bash"))
    return subprocess.run(
        [bash, str(ROOT / "iridis" / "pipeline.sh"), *words],
        env=env,
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )


SMALL = "train\t-\tlncot-train\t--name small -- @flags\nevaluate\ttrain\teval-lncot\t--checkpoint @train\n"
TREE = "stage        state  package\ntrain        new    lncot-train\n└─ evaluate  new    eval-lncot\n"


@pytest.mark.slow
def test_dry_run_shows_the_tree_without_slurm(
    table: Callable[..., str], without_slurm: dict[str, str]
) -> None:
    path = Path(table(SMALL))
    done = pipeline(without_slurm, path.name, "--dry-run", "--", "--iterations", "10", cwd=path.parent)
    assert (done.returncode, done.stdout, done.stderr) == (0, TREE, "")


@pytest.mark.slow
def test_nothing_is_run_unasked_where_there_is_no_slurm(
    table: Callable[..., str], without_slurm: dict[str, str]
) -> None:
    done = pipeline(without_slurm, table(SMALL))
    assert (done.returncode, done.stdout) == (2, TREE)
    assert done.stderr.startswith("error: there is no SLURM here") and done.stderr.count("\n") == 1
    assert not Path(without_slurm["SCRATCH_DIR"]).exists()


@pytest.mark.slow
def test_a_finished_training_is_told_as_done_and_its_evaluation_as_new(
    table: Callable[..., str], without_slurm: dict[str, str]
) -> None:
    job = [str(shutil.which("bash")), str(ROOT / "iridis/lncot-train/job.sh"), "--dry-run", "--name", "small"]
    printed = subprocess.run(job, env=without_slurm, capture_output=True, text=True, check=True).stdout
    command = next(line for line in printed.splitlines() if line.startswith("python main.py "))
    args = config.parse_args(shlex.split(command)[2:])
    config.experiment_folder(args).mkdir(parents=True)
    write_json(config.experiment_folder(args) / "summary.json", {"args": vars(args)})
    assert pipeline(without_slurm, table(SMALL), "--dry-run").stdout == TREE.replace(
        "new    lncot-train", "done   lncot-train"
    )


@pytest.mark.slow
def test_data_stages_are_done_for_another_dataset(
    table: Callable[..., str], without_slurm: dict[str, str]
) -> None:
    path = table(
        "get\t-\tdownload-dataset\t--full\ncut\tget\textract-tokenize-dataset\t-\n"
        "mine\t-\textract-tokenize-dataset\t--name mine --input x\n"
    )

    def states(dataset: str) -> list[str]:
        lines = pipeline(
            {**without_slurm, "DATASET": dataset, "DATA_DIR": "/nowhere"}, path, "--dry-run"
        ).stdout.splitlines()
        return [line.split()[-2] for line in lines[1:]]

    assert (states("mine"), states("owt2")) == (["done", "done", "new"], ["new", "new", "new"])


@pytest.mark.slow
def test_a_bad_flag_is_told_once_with_the_stages_that_it_concerns(
    table: Callable[..., str], without_slurm: dict[str, str]
) -> None:
    path = table("a\t-\tlncot-train\t-- @flags\nb\t-\tadm-train\t-- @flags\n")
    done = pipeline(without_slurm, path, "--dry-run", "--", "--n_head", "x")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: a, b: --n_head") and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["everything"], f"unknown pipeline everything; there are {TABLES}"),
        (["reproduce", "all"], f"unknown pipeline reproduce all; there are {TABLES}"),
        (["coalescence", "--size", "huge"], f"unknown pipeline coalescence-huge; there are {TABLES}"),
        (["all", "--size", "tiny"], "--size tiny: all has one size; coalescence has tiny and paper"),
        (["coalescence", "--size"], "--size needs a value: tiny or paper"),
        (["coalescence", "--size", "tiny", "--local", "--chain", "2"], ALONE),
        (["/nowhere/mine.tsv"], "there is no table /nowhere/mine.tsv"),
        (["--name", "x"], ALONE),
    ],
)
def test_what_is_no_pipeline_is_refused_in_one_line(
    without_slurm: dict[str, str], words: list[str], problem: str
) -> None:
    done = pipeline(without_slurm, *words)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: {problem}\n")
