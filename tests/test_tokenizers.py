"""Tokenizers behind one interface: round trips, datasets of each, and refusals."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data import inspect
from data.bins import open_splits, read_meta
from data.sizes import token_sizes
from data.tokenizer import BytePairs, Bytes, Characters, Tokenizer, named, open_tokenizer, text_of
from data.tokenizer_json import UsersOwn, read_vocabulary
from data.vocabulary import Vocabulary, described, other_tokens
from errors import UserError
from tests.corpora import lines, prepare, refusal, words
from tests.corpora import tokenize as tokenize_by
from tests.tokenizers_of_users import END, byte_level, saved

TEXTS = [
    "naïve ☃ 日本語\n",
    "\tplain words, and more of them",
    "",
    f"a literal {END} in the text",
    "\0\x7f\r\n",
]
# any text that UTF-8 has, control characters and the last plane included
any_text = st.text(st.characters(exclude_categories=["Cs"]))


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return byte_level(tmp_path_factory.mktemp("own") / "mine.json")


@pytest.fixture(scope="module")
def opened(own: Path) -> dict[str, Tokenizer]:
    return {"gpt2": BytePairs(), "bytes": Bytes(), "tokenizer.json": UsersOwn(read_vocabulary(own))}


# round trips


@pytest.mark.parametrize("name", ["gpt2", "bytes", "tokenizer.json"])
@given(text=any_text)
def test_a_text_is_given_back(opened: dict[str, Tokenizer], name: str, text: str) -> None:
    tokenizer = opened[name]
    assert text_of(tokenizer, tokenizer.encode(text)) == text


@given(text=any_text.filter(bool))
def test_a_text_is_given_back_by_its_characters(text: str) -> None:
    tokenizer = Characters(Vocabulary("char", None, "".join(sorted(set(text)))))
    assert text_of(tokenizer, tokenizer.encode(text)) == text


@pytest.mark.parametrize("name", ["gpt2", "bytes", "tokenizer.json"])
@given(texts=st.lists(any_text, min_size=1))
def test_documents_are_encoded_as_each_is_and_ended(
    opened: dict[str, Tokenizer], name: str, texts: list[str]
) -> None:
    tokenizer = opened[name]
    tokens, lengths = tokenizer.encoder(0).encode(texts, "shard")
    end = [] if tokenizer.known.end_of_text is None else [tokenizer.known.end_of_text]
    documents = [part.tolist() for part in np.split(tokens, np.cumsum(lengths))[:-1]]
    assert documents == [tokenizer.encode(text) + end for text in texts]


@pytest.mark.parametrize("name", ["gpt2", "bytes", "tokenizer.json"])
def test_sizes_are_those_of_the_tokens_bytes(opened: dict[str, Tokenizer], name: str, own: Path) -> None:
    tokenizer = opened[name]
    meta = {field: getattr(tokenizer.known, field) for field in ("tokenizer", "end_of_text")}
    meta |= {"tokenizer_file": str(own), "tokenizer_sha256": tokenizer.known.tokenizer_sha256}
    expected = [len(tokenizer.bytes_of(token)) for token in range(tokenizer.size)]
    if tokenizer.known.end_of_text is not None:
        expected[tokenizer.known.end_of_text] = 0
    sizes = token_sizes(meta, tokenizer.size + 7)
    assert sizes is not None and sizes.tolist() == expected + [0] * 7


def test_pieces_of_a_sentencepiece_tokenizer_are_text_and_single_bytes(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    pieces = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256)), "▁", "a", "b", "▁a"]
    model = tokenizers.models.BPE(
        vocab={piece: number for number, piece in enumerate(pieces)},
        merges=[("▁", "a")],
        unk_token="<unk>",
        byte_fallback=True,
    )
    made, steps = tokenizers.Tokenizer(model), tokenizers.decoders
    made.normalizer = tokenizers.normalizers.Replace(" ", "▁")
    made.decoder = steps.Sequence([steps.Replace("▁", " "), steps.ByteFallback(), steps.Fuse()])
    made.add_special_tokens(["<unk>", "<s>", "</s>"])
    tokenizer = UsersOwn(read_vocabulary(saved(made, tmp_path / "tokenizer.json")))
    text = "b a\n ab☃"
    assert text_of(tokenizer, tokenizer.encode(text)) == text
    assert tokenizer.known.end_of_text == pieces.index("</s>")


def test_the_end_of_a_text_is_what_the_file_beside_says(tmp_path: Path) -> None:
    byte_level(tmp_path / "tokenizer.json", end="<stop>")
    assert read_vocabulary(tmp_path / "tokenizer.json").end_of_text is None
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": {"content": "<stop>"}}))
    assert read_vocabulary(tmp_path / "tokenizer.json").end_of_text == 300


# datasets


@pytest.fixture
def corpus(tmp_path: Path) -> Path:
    path = tmp_path / "raw.jsonl"
    path.write_bytes(lines(TEXTS * 8))
    return path


def bins(folder: Path) -> dict[str, Any]:
    splits = open_splits(str(folder), None, 4, 1 << 17)
    return {"train": splits.train.tokens, "val": splits.val.tokens}


@pytest.mark.slow
def test_bytes_follow_each_other_with_nothing_between(
    tmp_path: Path, corpus: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert prepare(tmp_path / "set", corpus, tokenizer="bytes", val_fraction=0.25) == 0
    found = bins(tmp_path / "set")
    assert b"".join(found[name].astype(np.uint8).tobytes() for name in found) == "".join(TEXTS * 8).encode()
    assert "end_of_text" not in read_meta(tmp_path / "set")
    assert "documents follow each other directly" in capsys.readouterr().out


@pytest.mark.slow
def test_bytes_are_cut_where_a_word_begins(tmp_path: Path) -> None:
    (tmp_path / "raw.txt").write_text("wörter ☃☃☃ " * 40)
    prepare(tmp_path / "set", tmp_path / "raw.txt", tokenizer="bytes", val_fraction=0.1)
    assert bytes(bins(tmp_path / "set")["val"][:3].tolist()) in (b" w\xc3", " ☃".encode()[:3])


@pytest.mark.slow
def test_number_of_workers_and_groups_leave_no_trace_in_bytes(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "more.jsonl").write_bytes(lines(["another file", "☃"]))
    prepare(tmp_path / "one", corpus, tmp_path / "more.jsonl", tokenizer="bytes")
    monkeypatch.setattr("data.tokenize.GROUP_BYTES", 1)
    prepare(tmp_path / "two", corpus, tmp_path / "more.jsonl", tokenizer="bytes", workers=2)
    assert read_meta(tmp_path / "one") == read_meta(tmp_path / "two")


@pytest.mark.slow
def test_documents_without_any_byte_are_no_dataset(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "raw.jsonl").write_bytes(lines(["", "", ""]))
    assert "would be empty" in refusal(capfd, tmp_path / "set", tmp_path / "raw.jsonl", tokenizer="bytes")


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of a tokenizer of more tokens than 16 bits can number; its last merges are read."""
    place = tmp_path_factory.mktemp("wide")
    byte_level(place / "mine.json", size=65_700)
    (place / "raw.jsonl").write_bytes(lines([*TEXTS * 8, "ÿþýüûúùø" * 20]))
    given = words(place / "set", place / "raw.jsonl", tokenizer=place / "mine.json", val_fraction=0.5)
    assert tokenize_by(given) == 0
    return place / "set"


@pytest.mark.slow
def test_a_large_vocabulary_has_bins_of_32_bits_and_its_tokenizer_beside_them(wide: Path) -> None:
    meta = json.loads((wide / "meta.json").read_text())
    tokens = bins(wide)["train"]
    assert tokens.dtype == np.uint32 and tokens.nbytes == (wide / "train.bin").stat().st_size
    assert (meta["dtype"], meta["tokenizer_file"], meta["end_of_text"]) == (
        "uint32",
        "tokenizer.json",
        65_700,
    )
    tokenizer = open_tokenizer(described(read_meta(wide)))
    assert tokenizer is not None and max(tokens) == 65_700
    assert text_of(tokenizer, tokens[:20].tolist()).startswith(TEXTS[0])


@pytest.mark.slow
def test_inspect_verifies_wide_bins_and_the_tokenizer(
    wide: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert inspect.main([str(wide), "--png", str(tmp_path / "lengths.png")]) == 0
    assert "checksums  right" in capsys.readouterr().out


@pytest.mark.slow
def test_windows_of_wide_bins_are_their_tokens(wide: Path) -> None:
    windows = open_splits(str(wide), None, 8, 65_701).train
    assert windows.batch(np.array([1]))["inputs"].tolist() == [windows.tokens[8:16].tolist()]


@pytest.mark.slow
def test_a_vocabulary_beyond_that_of_the_model_is_refused(wide: Path) -> None:
    with pytest.raises(UserError, match="has 65701 tokens, but --vocab_size is 65700"):
        open_splits(str(wide), None, 8, 65_700)


def test_bins_without_a_description_may_say_that_they_are_wide(tmp_path: Path) -> None:
    for name in ("train", "val"):
        np.arange(70_000, dtype="<u4").tofile(tmp_path / f"{name}.bin")
    with pytest.raises(UserError, match=r'write {"dtype": "uint32"} into meta\.json'):
        open_splits(str(tmp_path), None, 8, 70_000)
    (tmp_path / "meta.json").write_text('{"dtype": "uint32"}')
    assert open_splits(str(tmp_path), None, 8, 70_000).train.tokens[-1] == 69_999


# refusals


@pytest.mark.parametrize(
    ("name", "said"),
    [
        (
            "bites",
            r"there is no such tokenizer \(did you mean bytes\?\); there are gpt2, char, bytes, or the",
        ),
        ("/gone/tokenizer.json", "cannot be read: No such file"),
        ("README.md", "is no tokenizer.json"),
    ],
)
def test_a_tokenizer_that_there_is_not_is_named(name: str, said: str) -> None:
    with pytest.raises(UserError, match=said):
        named(name)


def test_json_of_something_else_is_no_tokenizer(
    tmp_path: Path, corpus: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "other.json").write_text('{"model": {}}')
    said = refusal(capfd, tmp_path / "set", corpus, tokenizer=tmp_path / "other.json")
    assert "is no tokenizer.json" in said and len(said.splitlines()) == 1


def test_a_missing_package_is_named(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match=r"needs a package: tokenizers is not installed: .*pip install"):
        named(str(own))


@pytest.mark.slow
def test_a_folder_of_another_tokenizer_is_left_alone(
    tmp_path: Path, corpus: Path, own: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    prepare(tmp_path / "set", corpus, tokenizer="bytes")
    before = (tmp_path / "set" / "train.bin").read_bytes()
    for other in ("gpt2", own):
        assert prepare(tmp_path / "set", corpus, tokenizer=other) == 2
        assert "is prepared with the tokenizer 'bytes'" in capfd.readouterr().err
    assert (tmp_path / "set" / "train.bin").read_bytes() == before
    assert prepare(tmp_path / "set", corpus, tokenizer="bytes") == 0


@pytest.mark.slow
def test_unfinished_work_of_another_tokenizer_is_not_taken_up(
    tmp_path: Path, own: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data.tokenize.GROUP_BYTES", 1)
    inputs = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    inputs[0].write_bytes(lines(["good"] * 9))
    inputs[1].write_bytes(b"{\n")
    refusal(capfd, tmp_path / "set", *inputs, tokenizer="bytes")
    for other in ("gpt2", own):
        said = refusal(capfd, tmp_path / "set", *inputs, tokenizer=other, max_bad=1)
        assert "holds unfinished work of the tokenizer 'bytes'" in said
    assert prepare(tmp_path / "set", *inputs, tokenizer="bytes", max_bad=1) == 0


# what a checkpoint records


def test_a_file_that_is_gone_or_another_is_named(own: Path, tmp_path: Path) -> None:
    known = read_vocabulary(own)
    gone = Vocabulary("tokenizer.json", None, None, str(tmp_path / "x.json"), known.tokenizer_sha256)
    with pytest.raises(UserError, match=r"x\.json is gone: put it back .*or give the path of a copy"):
        open_tokenizer(gone)
    byte_level(tmp_path / "x.json", size=301)
    with pytest.raises(UserError, match=r"x\.json is another tokenizer than that of these tokens"):
        open_tokenizer(gone)


def test_tokens_of_two_files_are_of_two_kinds(own: Path, tmp_path: Path) -> None:
    mine, copy = read_vocabulary(own), tmp_path / "copy.json"
    copy.write_bytes(own.read_bytes())
    other = read_vocabulary(byte_level(tmp_path / "x.json", size=301))
    assert other_tokens({"vocabulary": vars(mine)}, vars(read_vocabulary(copy)), tmp_path) is None
    assert "another one" in str(other_tokens({"vocabulary": vars(mine)}, vars(other), tmp_path))
