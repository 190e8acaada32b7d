"""Folders of a corpus: no file is read twice, and what is passed over is counted."""

import gzip
import os
import socket
import threading
from pathlib import Path

import pytest

from data.find import find_shards
from tests.corpora import lines, write_tar
from tests.documents import TEXTS, put, read, refusal_of


def test_hidden_files_and_folders_are_passed_over_and_counted(tmp_path):
    put(tmp_path, "a.jsonl", TEXTS)
    for name in (".ipynb_checkpoints/a-checkpoint.jsonl", "._a.jsonl", "__MACOSX/a.jsonl"):
        put(tmp_path, name, b"\0\5\x16\7 no document")
    assert read(tmp_path) == (TEXTS, [], {"hidden files and folders": 3})


def test_hidden_file_that_is_named_is_read(tmp_path):
    assert read(put(tmp_path, ".a.jsonl", TEXTS))[0] == TEXTS


def test_linked_folder_is_read(tmp_path):
    put(tmp_path, "elsewhere/a.jsonl", TEXTS)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "part").symlink_to(tmp_path / "elsewhere")
    assert read(tmp_path / "corpus")[0] == TEXTS


def test_input_that_is_itself_a_linked_folder_is_read(tmp_path):
    put(tmp_path, ".hidden/a.jsonl", TEXTS)
    (tmp_path / "link").symlink_to(".hidden")
    assert read(tmp_path / "link")[0] == TEXTS


@pytest.mark.parametrize("target", [".", "..", "part", "part/loop", "../corpus/part", "../.."])
def test_links_that_lead_in_circles_double_nothing(tmp_path, target):
    put(tmp_path, "corpus/part/a.jsonl", TEXTS)
    (tmp_path / "corpus" / "part" / "loop").symlink_to(".")
    (tmp_path / "corpus" / "again").symlink_to(target)
    texts, bad, passed = read(tmp_path / "corpus")
    assert (texts, bad, sum(passed.values())) == (TEXTS, [], 2)


def test_link_to_a_folder_of_the_corpus_does_not_change_the_order(tmp_path):
    put(tmp_path, "b/a.jsonl", ["from b"])
    put(tmp_path, "c/a.jsonl", ["from c"])
    (tmp_path / "a").symlink_to("c")
    assert read(tmp_path)[0] == ["from b", "from c"]


def test_link_to_nothing_is_bad(tmp_path):
    put(tmp_path, "a.jsonl", TEXTS)
    (tmp_path / "b.jsonl").symlink_to("gone.jsonl")
    assert [item.place for item in read(tmp_path)[1]] == [f"{tmp_path}/b.jsonl"]


@pytest.mark.parametrize(
    "name", ["link", "hard link", "folder and file", "file twice", "folder in another", "other spelling"]
)
def test_file_that_is_named_twice_is_read_once(tmp_path, name):
    path = put(tmp_path, "corpus/a.jsonl", TEXTS)
    inputs = {
        "folder and file": [path.parent, path],
        "file twice": [path, path],
        "folder in another": [tmp_path, path.parent],
        "other spelling": [path, path.parent / ".." / "corpus" / "a.jsonl"],
    }.get(name, [path.parent])
    if name == "link":
        (path.parent / "0.jsonl").symlink_to("a.jsonl")
    if name == "hard link":
        os.link(path, path.parent / "0.jsonl")
    texts, _, passed = read(*inputs)
    assert (texts, sum(passed.values())) == (TEXTS, 1)


def test_file_that_is_passed_over_under_one_name_is_read_under_another(tmp_path):
    """As in the cache of a model hub: blobs without a suffix, and links with names."""
    blob = put(tmp_path, "blobs/0a1b2c", TEXTS)
    (tmp_path / "snapshots").mkdir()
    (tmp_path / "snapshots" / "train.jsonl").symlink_to(blob)
    assert read(tmp_path)[:2] == (TEXTS, []) and read(tmp_path, include=["*.jsonl"])[0] == TEXTS


@pytest.mark.parametrize("include", [[], ["*.jsonl"]])
def test_file_that_is_named_is_read_whatever_its_folder_leaves_out(tmp_path, include):
    put(tmp_path, "a.jsonl", ["a"])
    assert sorted(read(tmp_path, put(tmp_path, "more.json", ["b"]), include=include)[0]) == ["a", "b"]


def test_files_of_the_same_content_are_different_documents(tmp_path):
    put(tmp_path, "a.jsonl", TEXTS)
    put(tmp_path, "b.jsonl", TEXTS)
    assert read(tmp_path) == (TEXTS * 2, [], {})


def test_plain_file_beside_its_compressed_form_is_told(tmp_path):
    put(tmp_path, "a.jsonl", TEXTS)
    put(tmp_path, "a.jsonl.gz", gzip.compress(lines(TEXTS)))
    assert "differ from another in compression alone" in find_shards([tmp_path]).lines()[0]


def test_what_is_of_no_known_kind_is_counted_by_kind(tmp_path):
    put(tmp_path, "a.jsonl", TEXTS)
    for name in ("README.md", "b.MD", "LICENSE", "a.tar.gz", "b.zip", "c.jsonl.lz4", "state.json"):
        put(tmp_path, name, b"x")
    assert read(tmp_path)[2] == {
        ".md files": 2,
        "files without a suffix": 1,
        ".tar.gz archives (unpack them first)": 1,
        ".lz4 files": 1,
        ".zip archives (unpack them first)": 1,
        ".json files (read where --input or --include names them)": 1,
    }


def test_many_kinds_take_few_lines(tmp_path):
    put(tmp_path, "a.jsonl", TEXTS)
    for number in range(300):
        put(tmp_path, f"x.{number}", b"x")
    assert len(find_shards([tmp_path]).lines()) == 11


def test_pipes_and_sockets_are_passed_over(tmp_path):
    put(tmp_path, "a.jsonl", TEXTS)
    os.mkfifo(tmp_path / "b.jsonl")
    (tmp_path / "c.jsonl").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as own:
        own.bind(str(tmp_path / "d.jsonl"))
        assert read(tmp_path) == (TEXTS, [], {"pipes, sockets and devices": 3})


def test_pipe_that_is_named_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "b.jsonl")
    refused = []
    thread = threading.Thread(target=lambda: refused.append(refusal_of(tmp_path / "b.jsonl")), daemon=True)
    thread.start()
    thread.join(10)
    assert refused and "a pipe, socket or device" in refused[0]


def test_folder_that_cannot_be_listed_is_bad(tmp_path, monkeypatch):
    put(tmp_path, "a.jsonl", TEXTS)
    put(tmp_path, "closed/b.jsonl", TEXTS)
    listed = os.scandir

    def scandir(path):  # the tests may run as root, whom no folder is closed to
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return listed(path)

    monkeypatch.setattr(os, "scandir", scandir)
    assert [item.reason for item in read(tmp_path)[1]] == ["the folder cannot be read: Permission denied"]


def test_empty_files_are_told(tmp_path):
    put(tmp_path, "a.jsonl", TEXTS)
    put(tmp_path, "b.jsonl.gz", b"")
    assert read(tmp_path) == (TEXTS, [], {"empty files": 1})


@pytest.mark.parametrize(
    ("patterns", "texts"),
    [
        (["*.jsonl"], ["a", "b", "d"]),
        (["en/*"], ["b"]),
        (["a.*", "*.json"], ["a", "c"]),
        (["all.tar"], ["d"]),
    ],
)
def test_include_chooses_by_name_and_by_path(tmp_path, patterns, texts):
    for name in ("a.jsonl", "en/b.jsonl", "c.json"):
        put(tmp_path, name, [Path(name).stem])
    write_tar(
        tmp_path / "all.tar",
        [("x/d.jsonl", lines(["d"])), ("e.txt", b"e")][: 1 if patterns == ["all.tar"] else 2],
    )
    assert sorted(read(tmp_path, include=patterns)[0]) == texts


def test_include_counts_what_it_leaves_out(tmp_path):
    for name in ("a.jsonl", "b.jsonl"):
        put(tmp_path, name, TEXTS)
    assert read(tmp_path, include=["a*"])[2] == {"files that match no --include": 1}
