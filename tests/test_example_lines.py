"""Preparing examples for fine-tuning: what is refused, line by line, and that kills change nothing."""

import bz2
import fcntl
import gzip
import hashlib
import json
import lzma
import multiprocessing
import os
import signal

import numpy as np
import pytest

import data.tokenize as own
from config.formats import CHAT, FORMATS, PAIRS, PROMPTS
from data.examples import open_examples
from data.inspect import main as inspect
from tests.command_lines import code_of
from tests.corpora import compress, prepare, refusal, tokenize
from tests.test_examples import prepared, rows_of, stored, text, write

GOOD = {
    CHAT: {"prompt": "p", "completion": "c"},
    PAIRS: {"prompt": "p", "chosen": "c", "rejected": "r"},
    PROMPTS: {"prompt": "p"},
}


def said(message):
    return {"messages": message}


def turn(role, content="text"):
    return {"role": role, "content": content}


BAD = [
    (CHAT, b"{", "not JSON in UTF-8"),
    (CHAT, b'{"prompt": "\xff", "completion": "c"}', "not JSON in UTF-8"),
    (CHAT, b"[1]", "not a JSON object"),
    (CHAT, {}, "neither 'messages' nor 'prompt' and 'completion'"),
    (CHAT, {"prompt": "p"}, "no text under 'completion'"),
    (CHAT, {"prompt": "p", "completion": ""}, "the text under 'completion' is empty"),
    (CHAT, {"prompt": "", "completion": "c"}, "the text under 'prompt' is empty"),
    (CHAT, {"prompt": 1, "completion": "c"}, "the value under 'prompt' is no text"),
    (CHAT, {"prompt": "p", "completion": "a\0b"}, "an answer holds token 0, with which answers end"),
    (CHAT, {"messages": [], "prompt": "p"}, "both 'messages' and 'prompt'"),
    (CHAT, said([]), "the value under 'messages' is no list of messages"),
    (CHAT, said("hello"), "the value under 'messages' is no list of messages"),
    (CHAT, said(["hello"]), "message 1 is no object with 'role' and 'content'"),
    (CHAT, said([turn("user"), turn("robot")]), "the role of message 2 is 'robot'"),
    (CHAT, said([turn("user"), turn(["assistant"])]), "the role of message 2 is ['assistant']"),
    (CHAT, said([turn("assistant")]), "message 1 is of the assistant, where one of the user must be"),
    (
        CHAT,
        said([turn("user"), turn("user")]),
        "message 2 is of the user, where one of the assistant must be",
    ),
    (CHAT, said([turn("user"), turn("system")]), "message 2 is of the system"),
    (CHAT, said([turn("user")]), "the last message is of the user"),
    (CHAT, said([turn("system")]), "the last message is of the system"),
    (CHAT, said([turn("user"), turn("assistant", "")]), "message 2: the text under 'content' is empty"),
    (CHAT, said([turn("user"), {"role": "assistant"}]), "message 2: no text under 'content'"),
    (CHAT, said([turn("user", 5), turn("assistant")]), "message 1: the value under 'content' is no text"),
    (PAIRS, {"prompt": "p", "chosen": "c"}, "no text under 'rejected'"),
    (PAIRS, {"prompt": "p", "chosen": "", "rejected": "r"}, "the text under 'chosen' is empty"),
    (PAIRS, {"prompt": "p", "chosen": [turn("user")], "rejected": "r"}, "under 'chosen' is no text"),
    (PAIRS, {"prompt": "p", "chosen": "c", "rejected": "c"}, "'chosen' and 'rejected' are the same"),
    (PROMPTS, {"answer": "4"}, "no text under 'prompt'"),
    (PROMPTS, {"prompt": ""}, "the text under 'prompt' is empty"),
    (PROMPTS, {"prompt": "p", "answer": 4}, "the value under 'answer' is no text"),
]


def lines_with(folder, format, bad):
    """A file whose third line is bad."""
    good = json.dumps(GOOD[format]).encode() + b"\n"
    raw = bad if isinstance(bad, bytes) else json.dumps(bad).encode()
    path = folder / "rows.jsonl"
    path.write_bytes(good * 2 + raw + b"\n" + good)
    return path


@pytest.mark.parametrize(("format", "bad", "reason"), BAD, ids=[f"{b[0]}-{b[2][:40]}" for b in BAD])
def test_bad_line_is_refused_with_its_place(tmp_path, capfd, format, bad, reason):
    path = lines_with(tmp_path, format, bad)
    answer = refusal(capfd, tmp_path / "set", path, format=format, tokenizer="bytes")
    assert f"{path}: line 3: " in answer and reason in answer


def test_bad_lines_within_the_limit_are_left_out_and_shown(tmp_path, capfd):
    path = lines_with(tmp_path, CHAT, {"prompt": "p", "completion": "a\0"})
    assert prepare(tmp_path / "set", path, format=CHAT, tokenizer="bytes", max_bad=1) == 0
    assert f"left out: {path}: line 3: an answer holds token 0" in capfd.readouterr().out
    splits = open_examples(tmp_path / "set", CHAT)
    assert (len(splits.train) + len(splits.val), splits.meta["bad_lines"]) == (3, 1)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"format": "pictures"}, "invalid choice: 'pictures'"),
        ({"format": CHAT, "val_fraction": 0.1}, "--val-fraction cuts a document, and examples stay whole"),
        ({"format": CHAT, "text_key": "body"}, "--text-key is of documents"),
    ],
)
def test_bad_command_is_refused(tmp_path, capfd, options, reason):
    path = write(tmp_path / "rows.jsonl", rows_of(CHAT))
    assert reason in refusal(capfd, tmp_path / "set", path, **options)


def test_format_without_input_is_refused(tmp_path, capfd):
    assert tokenize(["--name", str(tmp_path / "set"), "--format", CHAT]) == 2
    assert "--format needs --input" in capfd.readouterr().err


def test_one_example_is_too_few(tmp_path, capfd):
    path = write(tmp_path / "rows.jsonl", [GOOD[CHAT]])
    answer = refusal(capfd, tmp_path / "set", path, format=CHAT, tokenizer="bytes")
    assert answer == "data.tokenize: error: 1 examples are too few: both splits need one\n"


def test_plain_text_is_refused(tmp_path, capfd):
    (tmp_path / "a.txt").write_text("text")
    assert "and no plain text" in refusal(capfd, tmp_path / "set", tmp_path / "a.txt", format=CHAT)


def test_plain_text_of_a_folder_is_passed_over(tmp_path, capfd):
    (tmp_path / "in").mkdir()
    write(tmp_path / "in" / "rows.jsonl", rows_of(CHAT))
    (tmp_path / "in" / "README.txt").write_text("text")
    assert prepare(tmp_path / "set", tmp_path / "in", format=CHAT, tokenizer="bytes") == 0
    assert "passed over: 1 .txt files (examples are JSON lines)" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("ending", "pack"),
    [
        ("jsonl.gz", gzip.compress),
        ("ndjson.bz2", bz2.compress),
        ("jsonl.xz", lzma.compress),
        ("json.zst", compress),
    ],
)
def test_compressed_lines_are_read(tmp_path, ending, pack):
    plain = write(tmp_path / "rows", rows_of(PAIRS)).read_bytes()
    (tmp_path / f"rows.{ending}").write_bytes(pack(plain))
    assert prepare(tmp_path / "set", tmp_path / f"rows.{ending}", format=PAIRS, tokenizer="bytes") == 0
    splits = open_examples(tmp_path / "set", PAIRS)
    assert len(splits.train) + len(splits.val) == 60


def test_rows_of_a_table_are_read(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    pyarrow = pytest.importorskip("pyarrow")
    turns = [[turn("user", f"{n}?"), turn("assistant", f"{n}!")] for n in range(9)]
    parquet.write_table(pyarrow.table({"messages": turns}), tmp_path / "rows.parquet")
    assert prepare(tmp_path / "set", tmp_path / "rows.parquet", format=CHAT, tokenizer="bytes") == 0
    texts = {text(tokens) for tokens, _ in stored(open_examples(tmp_path / "set", CHAT))}
    assert texts == {f"<|user|>\n{n}?\n<|assistant|>\n{n}!\0" for n in range(9)}


def test_prompts_that_are_in_both_splits_are_counted(tmp_path, capfd):
    rows = [{"prompt": "same", "completion": str(number)} for number in range(30)]
    prepared(tmp_path, CHAT, [*rows, *rows_of(CHAT)])
    assert "note: 1 of " in capfd.readouterr().out


def test_prompts_of_one_split_alone_are_no_news(tmp_path, capfd):
    prepared(tmp_path, CHAT, rows_of(CHAT))
    said = capfd.readouterr().out
    assert "answers end with token 0; the longest sequence has" in said and "note" not in said


# tokenizers


def test_characters_are_those_of_the_examples(tmp_path):
    splits = open_examples(prepared(tmp_path, CHAT, rows_of(CHAT), tokenizer="char"), CHAT)
    assert splits.meta["characters"][splits.stop] == "\0"
    assert splits.meta["characters"] == "\0" + "".join(sorted(set("is ?!x0123456789")))


def test_tokenizer_of_a_prepared_folder(tmp_path, capfd):
    """For a model of characters, whose tokens are no others'."""
    base = tmp_path / "base"
    (tmp_path / "book.txt").write_text("ab\n" * 9)
    assert prepare(base, tmp_path / "book.txt", tokenizer="char") == 0
    path = write(tmp_path / "rows.jsonl", [{"prompt": "a", "completion": "b"}] * 3)
    assert prepare(tmp_path / "set", path, format=CHAT, tokenizer=base) == 0
    splits = open_examples(tmp_path / "set", CHAT)
    assert splits.train.example(0)[0].tolist() == [1, 2, 0] and splits.meta["characters"] == "\nab"
    write(path, [{"prompt": "a", "completion": "c"}] * 3)
    answer = refusal(capfd, tmp_path / "other", path, format=CHAT, tokenizer=base)
    assert "line 1: the tokenizer has no 'c'" in answer


# folders


@pytest.mark.parametrize("ending", ["bin", "index", "texts"])
def test_damage_is_found(tmp_path, capsys, ending):
    folder = prepared(tmp_path, PROMPTS, rows_of(PROMPTS))
    path = folder / f"train.{ending}"
    raw = bytearray(path.read_bytes())
    raw[-3] ^= 1
    path.write_bytes(raw)
    assert code_of(inspect, [str(folder)]) == 1
    assert f"{path} has another SHA-256" in capsys.readouterr().out


@pytest.mark.parametrize("format", FORMATS)
def test_inspection_shows_what_is_masked(tmp_path, capsys, format):
    folder = prepared(tmp_path, format, rows_of(format))
    assert code_of(inspect, [str(folder)]) == 0
    shown = capsys.readouterr().out
    expected = {
        CHAT: ["[masked] ", "[counted] is "],
        PAIRS: ["[prompt] ", "[chosen] is ", "[rejected] no "],
        PROMPTS: ["[prompt] ", "[answer] is "],
    }
    assert all(f"\n{part}" in shown for part in expected[format]), shown


def test_prepared_folder_is_left_as_it_is(tmp_path, capfd):
    folder = prepared(tmp_path, CHAT, rows_of(CHAT))
    before = (folder / "train.bin").stat().st_mtime_ns
    assert prepare(folder, tmp_path / "rows.jsonl", format=CHAT, tokenizer="bytes") == 0
    assert "is prepared already" in capfd.readouterr().out
    assert (folder / "train.bin").stat().st_mtime_ns == before


@pytest.mark.parametrize(("first", "then"), [(CHAT, PAIRS), (CHAT, None), (None, CHAT)])
def test_folder_of_another_form_is_not_overwritten(tmp_path, capfd, first, then):
    (tmp_path / "a.jsonl").write_text('{"text": "a", "prompt": "p", "completion": "c"}\n' * 9)
    forms = [{} if form is None else {"format": form} for form in (first, then)]
    assert prepare(tmp_path / "set", tmp_path / "a.jsonl", tokenizer="bytes", **forms[0]) == 0
    assert prepare(tmp_path / "set", tmp_path / "a.jsonl", tokenizer="bytes", **forms[1]) == 2
    assert "is prepared and holds" in capfd.readouterr().err


def test_force_leaves_no_file_of_another_form(tmp_path):
    folder = prepared(tmp_path, PROMPTS, rows_of(PROMPTS))
    assert prepare(folder, tmp_path / "rows.jsonl", text_key="prompt", tokenizer="bytes", force=True) == 0
    assert sorted(path.name for path in folder.iterdir()) == ["meta.json", "train.bin", "val.bin"]


# kills


def sums(folder):
    paths = sorted(folder.glob("*.*"))
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def dies_after(groups, folder, *inputs, **options):
    """Prepare in a forked process that ends by SIGKILL when so many groups are done."""

    def work():
        left, check = iter(range(groups + 1)), own.refuse_bad

        def check_or_die(*found):
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            check(*found)

        own.refuse_bad = check_or_die  # called before the first group and after each
        prepare(folder, *inputs, **options)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    with open(folder / ".tokenize" / "lock") as lock:  # until its worker is gone, too, which has it open
        fcntl.flock(lock, fcntl.LOCK_EX)


def test_kills_do_not_change_a_byte(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("data.tokenize.GROUP_BYTES", 1)
    inputs = [write(tmp_path / f"{number:03d}.jsonl", rows_of(PROMPTS, 40)) for number in range(12)]
    options = {"format": PROMPTS, "tokenizer": "bytes", "val_share": 0.1}
    assert prepare(tmp_path / "whole", *inputs, **options) == 0
    for groups in (3, 4):
        dies_after(groups, tmp_path / "set", *inputs, **options)
        assert not (tmp_path / "set" / "train.bin").exists()
    capfd.readouterr()
    assert prepare(tmp_path / "set", *inputs, **options) == 0
    assert "shards are done already" in capfd.readouterr().out
    assert sums(tmp_path / "set") == sums(tmp_path / "whole")


def test_unfinished_work_of_another_format_starts_over(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("data.tokenize.GROUP_BYTES", 1)
    good = write(
        tmp_path / "a.jsonl", [{"prompt": "p", "completion": "c", "chosen": "c", "rejected": "r"}] * 5
    )
    (tmp_path / "b.jsonl").write_text("{\n")
    refusal(capfd, tmp_path / "set", good, tmp_path / "b.jsonl", format=CHAT, tokenizer="bytes")
    assert prepare(tmp_path / "set", good, format=PAIRS, tokenizer="bytes") == 0
    assert len(stored(open_examples(tmp_path / "set", PAIRS))) == 5


def test_finished_group_that_lost_bytes_is_encoded_again(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("data.tokenize.GROUP_BYTES", 1)
    inputs = [write(tmp_path / "a.jsonl", rows_of(PROMPTS)), tmp_path / "b.jsonl"]
    inputs[1].write_text("{\n")
    refusal(capfd, tmp_path / "set", *inputs, format=PROMPTS, tokenizer="bytes")
    os.truncate(tmp_path / "set" / ".tokenize" / "000000.texts", 5)
    assert prepare(tmp_path / "set", *inputs, format=PROMPTS, tokenizer="bytes", max_bad=1) == 0
    assert np.unique([found.text for found in stored(open_examples(tmp_path / "set"))]).size == 60
