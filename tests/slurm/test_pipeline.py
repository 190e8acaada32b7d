"""The whole graph of jobs, from a raw corpus to the evaluations, small."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from data.tokenize import RAW_OWT2
from tests.corpora import compress, lines, write_tar
from tests.slurm.cluster import Cluster, wait_until
from tests.slurm.jobs import Site, tiny

STAGES = [
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
FLAGS = tiny(model=None, iterations=10, save_checkpoint_freq=None, vocab_size=50304, batch_size=1, n_embd=16)


def pipeline(site: Site, *words: str) -> subprocess.CompletedProcess[str]:
    return site.cluster.run(
        "bash",
        str(site.repo / "iridis" / "pipeline.sh"),
        *words,
        "--",
        *FLAGS,
        timeout=300,
        **site.environment(N_GPUS="0", PARTITION="amd_student"),
    )


def stages(said: str) -> dict[str, str]:
    """Job, or what stands in its place, of each stage in the tree that the pipeline prints."""
    rows = [line.lstrip("│├└─ ").split() for line in said.splitlines()[1:]]
    return {row[0]: row[1] for row in rows}


@pytest.fixture(scope="module")
def site_with_corpus(cluster: Cluster, repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Site:
    """A site that has nothing but a tar to download, and a partition that may."""
    folder = tmp_path_factory.mktemp("pipeline")
    (folder / "hub").mkdir()
    texts = [f"Document {n}. " + "All work and no play makes a dull corpus. " * 40 for n in range(40)]
    write_tar(folder / "hub" / RAW_OWT2, [("2005-12.jsonl.zst", compress(lines(texts)))])
    return Site(
        cluster,
        repo,
        folder / "results",
        {
            "DATA_DIR": str(folder / "data"),
            "DATASET": "owt2",
            "DOWNLOAD_PARTITION": "amd_student",
            "DOWNLOAD_SOURCE": str(folder / "hub"),
        },
    )


@pytest.fixture(scope="module")
def queued(site_with_corpus: Site) -> dict[str, str]:
    """The stages as a first call queued them, and all jobs run to their end."""
    done = pipeline(site_with_corpus)
    assert done.returncode == 0, done.stdout + done.stderr
    wait_until(lambda: not site_with_corpus.queue(), 300, "the end of the graph")
    return stages(done.stdout)


def test_dry_run_shows_the_graph_and_queues_nothing(site_with_corpus: Site) -> None:
    assert stages(pipeline(site_with_corpus, "--dry-run").stdout) == dict.fromkeys(STAGES, "new")
    assert site_with_corpus.queue() == []


def test_each_stage_is_a_job_of_its_own(queued: dict[str, str]) -> None:
    assert sorted(queued) == sorted(STAGES)
    assert len({job for job in queued.values() if job.isdigit()}) == len(STAGES)


def test_graph_runs_to_its_end_and_is_skipped_when_called_again(
    site_with_corpus: Site, queued: dict[str, str]
) -> None:
    again = stages(pipeline(site_with_corpus).stdout)
    assert again == dict.fromkeys(STAGES, "done")


def test_trainings_waited_for_the_data_and_evaluations_for_their_training(
    site_with_corpus: Site, queued: dict[str, str]
) -> None:
    def began_and_ended(stage: str) -> tuple[str, str]:
        return site_with_corpus.show(queued[stage], "StartTime"), site_with_corpus.show(
            queued[stage], "EndTime"
        )

    for earlier, later in (
        ("download", "tokenise"),
        ("tokenise", "adm"),
        ("adm", "lncot-exp4"),
        ("lncot", "eval-lncot"),
    ):
        assert began_and_ended(earlier)[1] <= began_and_ended(later)[0]


def test_an_evaluation_that_was_done_with_other_flags_is_queued(
    site_with_corpus: Site, queued: dict[str, str], tmp_path: Path
) -> None:
    table = tmp_path / "mine.tsv"
    table.write_text(
        "lncot\t-\tlncot-train\t-- @flags\nwhole\tlncot\teval-lncot\t--checkpoint @lncot\n"
        "part\tlncot\teval-lncot\t--checkpoint @lncot -- --eval_sample_size 4\n"
    )
    first = pipeline(site_with_corpus, str(table))
    said = stages(first.stdout)
    assert (said["lncot"], said["whole"], said["part"].isdigit()) == ("done", "done", True), (
        first.stdout + first.stderr
    )
    wait_until(lambda: not site_with_corpus.queue(), 120, "the end of the evaluation")
    assert stages(pipeline(site_with_corpus, str(table)).stdout) == dict.fromkeys(said, "done")


def test_a_stage_that_is_refused_holds_back_only_what_waits_for_it(
    site_with_corpus: Site, queued: dict[str, str], tmp_path: Path
) -> None:
    table = tmp_path / "mine.tsv"
    table.write_text(
        "narrow\t-\tlncot-train\tN_NODES=9 --name narrow -- @flags\nwide\tnarrow\tlncot-train\t--name wide --"
        " @flags\nscore\twide\teval-lncot\t--checkpoint @wide\nother\t-\tlncot-train\t--name other --"
        " @flags\n"
    )
    done = pipeline(site_with_corpus, str(table))
    said = stages(done.stdout)
    site_with_corpus.scancel(said.pop("other"))
    assert (done.returncode, said) == (2, {"narrow": "failed", "wide": "blocked", "score": "blocked"})
    assert (
        "N_NODES 9 is more than partition amd_student has" in done.stderr
        and "stage score is not queued: it waits for wide" in done.stderr
    )
