"""Preparations that were killed or repeated give the same bytes; raw files go once the bins are right."""

import os
import random
import re
import signal
import sys
import time
from pathlib import Path

import pytest

from data import open_splits
from data.bins import is_prepared
from data.built_in import stdlib_documents
from data.tokenize import delete_raw, working_folder
from errors import UserError
from tests.corpora import (
    BINS,
    DOCUMENTS,
    all_documents,
    as_jsonl,
    compress,
    flip,
    hashes,
    lines,
    names,
    prepare,
    refusal,
    words,
    write_tar,
)
from tests.programs import run, start

pytestmark = pytest.mark.slow  # each starts worker processes


def program(folder, *inputs, **options):
    """As `python -m data.tokenize`, but that small shards, too, are done one by one."""
    code = "import sys, data.tokenize as own; own.GROUP_BYTES = 1; sys.exit(own.main())"
    return [sys.executable, "-c", code, *words(folder, *inputs, **options)]


# restarts


@pytest.fixture
def broken_off(tmp_path, bpe_cache, capfd, monkeypatch):
    """A preparation that encoded a.jsonl and stopped at b.jsonl: its inputs and folder."""
    monkeypatch.setattr("data.tokenize.GROUP_BYTES", 1)
    inputs = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    inputs[0].write_bytes(lines(f"document {number}" for number in range(10)))
    inputs[1].write_bytes(lines(["good"]) + b"{\n")
    refusal(capfd, tmp_path / "set", *inputs)
    return inputs, tmp_path / "set"


def first_shard(folder):
    return (folder / ".tokenize" / "000000.json").stat().st_mtime_ns


def test_finished_shard_is_not_encoded_again(broken_off, capfd):
    inputs, folder = broken_off
    before = first_shard(folder)
    refusal(capfd, folder, *inputs)
    assert first_shard(folder) == before


def test_restart_says_what_is_done(broken_off, capfd):
    prepare(broken_off[1], *broken_off[0], max_bad=1)
    assert "1 of 2 shards are done already" in capfd.readouterr().out


def test_changed_input_starts_over(broken_off):
    inputs, folder = broken_off
    inputs[0].write_bytes(inputs[0].read_bytes().replace(b"document", b"DOCUMENT"))
    prepare(folder, *inputs, max_bad=1)
    assert all_documents(folder) == sorted([*(f"DOCUMENT {number}" for number in range(10)), "good"])


def test_changed_text_key_starts_over(broken_off, capfd):
    inputs, folder = broken_off
    assert "no text under 'body'" in refusal(capfd, folder, *inputs, text_key="body", max_bad=3)


@pytest.mark.parametrize("ending", ["bin", "len"])
def test_finished_shard_that_lost_bytes_is_encoded_again(broken_off, ending):
    inputs, folder = broken_off
    os.truncate(folder / ".tokenize" / f"000000.{ending}", 2)
    prepare(folder, *inputs, max_bad=1)
    assert len(all_documents(folder)) == 11


def test_leftovers_of_a_killed_run_are_not_taken_for_a_dataset(broken_off):
    (broken_off[1] / "val.bin").write_bytes(b"ab" * 99)
    (broken_off[1] / ".train.bin.1.tmp").write_bytes(b"ab" * 99)
    with pytest.raises(UserError, match="is not prepared"):
        open_splits(str(broken_off[1]), None, 8, 50304)


def test_leftovers_of_a_killed_run_are_cleared_away(broken_off):
    (broken_off[1] / ".train.bin.1.tmp").write_bytes(b"ab" * 99)
    prepare(broken_off[1], *broken_off[0], max_bad=1)
    assert names(broken_off[1]) == ["meta.json", "train.bin", "val.bin"]


def test_second_preparation_of_a_folder_is_refused(corpus, capfd):
    with working_folder(corpus[1], {}):
        assert "is being prepared by another process" in refusal(capfd, corpus[1], corpus[0])


SHARDS = 120


@pytest.fixture(scope="module")
def big(tmp_path_factory, ranks_folder):
    """A corpus of many members, and the hashes of an unbroken preparation."""
    folder = tmp_path_factory.mktemp("big")
    texts = [text for _, text in stdlib_documents()][: SHARDS * 5]
    archive = write_tar(
        folder / "a.tar", [(f"{n:04d}.jsonl.zst", compress(lines(texts[n::SHARDS]))) for n in range(SHARDS)]
    )
    outcome = run(
        program(folder / "set", archive, workers=2, val_share=0.05), TIKTOKEN_CACHE_DIR=str(ranks_folder)
    )
    assert outcome.returncode == 0, outcome.stderr
    return archive, hashes(folder / "set")


def alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except (FileNotFoundError, ProcessLookupError):
        return False


def descendants(pid):
    try:
        own = [
            int(child)
            for task in Path(f"/proc/{pid}/task").iterdir()
            for child in (task / "children").read_text().split()
        ]
    except (FileNotFoundError, ProcessLookupError):
        return []
    return own + [deeper for child in own for deeper in descendants(child)]


def wait_until(true, seconds=60.0):
    end = time.monotonic() + seconds
    while not true():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def finished(folder):
    return len(list(folder.glob(".tokenize/[0-9]*.json")))


def kill_at(folder, archive, shards, ranks_folder):
    """Start a preparation, kill its main process alone when that many shards are done; the processes it
    had started.
    """
    process = start(program(folder, archive, workers=2, val_share=0.05), TIKTOKEN_CACHE_DIR=str(ranks_folder))
    try:
        assert wait_until(lambda: finished(folder) >= shards or process.poll() is not None)
        assert process.poll() is None, process.communicate()
        workers = descendants(process.pid)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()
    return workers


def test_kills_at_random_moments_do_not_change_a_byte(big, tmp_path, ranks_folder):
    for shards in sorted(random.Random(2357).sample(range(SHARDS - 5), 3)):
        kill_at(tmp_path / "set", big[0], shards, ranks_folder)
        assert not (tmp_path / "set" / "train.bin").exists()
    outcome = run(
        program(tmp_path / "set", big[0], workers=2, val_share=0.05), TIKTOKEN_CACHE_DIR=str(ranks_folder)
    )
    assert (outcome.returncode, hashes(tmp_path / "set")) == (0, big[1]), outcome.stderr


def test_no_worker_survives_its_parent(big, tmp_path, ranks_folder):
    workers = kill_at(tmp_path / "set", big[0], 10, ranks_folder)
    assert len(workers) >= 2
    assert wait_until(lambda: not any(map(alive, workers)), 10)


def test_loss_of_a_worker_does_not_hang_the_job(big, tmp_path, ranks_folder):
    process = start(
        program(tmp_path / "set", big[0], workers=2, val_share=0.05), TIKTOKEN_CACHE_DIR=str(ranks_folder)
    )
    try:
        assert wait_until(lambda: finished(tmp_path / "set") >= 10)
        worker = next(
            pid
            for pid in descendants(process.pid)
            if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()
        )
        os.kill(worker, signal.SIGKILL)
        process.communicate(timeout=45)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
    assert process.returncode == 2 or (process.returncode == 0 and hashes(tmp_path / "set") == big[1])


# raw files that go when the bins are right


def test_delete_raw_deletes_the_input(corpus):
    prepare(corpus[1], corpus[0], delete_raw=True)
    assert (is_prepared(corpus[1]), corpus[0].exists()) == (True, False)


def test_raw_files_are_kept_otherwise(corpus):
    prepare(corpus[1], corpus[0])
    assert corpus[0].exists()


def test_delete_raw_keeps_the_input_of_a_failed_preparation(corpus, capfd):
    corpus[0].write_bytes(corpus[0].read_bytes() + b"{\n")
    refusal(capfd, corpus[1], corpus[0], delete_raw=True)
    assert corpus[0].exists()


@pytest.mark.parametrize(
    "damage", [flip, lambda path: os.truncate(path, path.stat().st_size - 2)], ids=["flipped", "cut short"]
)
@pytest.mark.parametrize("name", BINS)
def test_delete_raw_keeps_the_input_of_damaged_bins(own, tmp_path, name, damage):
    raw = tmp_path / "corpus.jsonl"
    raw.write_bytes(lines(DOCUMENTS))
    damage(own / name)
    with pytest.raises(UserError, match=rf"{re.escape(name)}[\s\S]*the raw files are kept"):
        delete_raw([raw], own, print)
    assert raw.exists()


def test_delete_raw_keeps_folders(tmp_path, bpe_cache):
    (tmp_path / "raw").mkdir()
    as_jsonl(tmp_path / "raw")
    prepare(tmp_path / "set", tmp_path / "raw", delete_raw=True)
    assert (tmp_path / "raw" / "a.jsonl").exists()
