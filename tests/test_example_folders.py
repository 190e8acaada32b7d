"""Folders of examples and of running text are told from each other, and damage is one line."""

import json
import shutil
from argparse import Namespace

import numpy as np
import pytest

from config.formats import CHAT, FORMATS, PAIRS, PROMPTS
from config.groups.objective import DPO, GRPO, NEXT_TOKEN, SFT
from data import open_splits
from data.bins import data_differences, identity_of
from data.example_sources import PromptSource, SftSource
from data.examples import open_examples
from data.segments import COUNTED
from data.sources import Wanted, lacking_sources
from errors import UserError
from iridis import targets
from tests.corpora import prepare
from tests.test_examples import prepared, rows_of
from tests.tokenizers_of_users import byte_level


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A data folder with a set of each form, under its name; running text is `text`."""
    root = tmp_path_factory.mktemp("sets")
    for format in FORMATS:
        (root / "made").mkdir()
        shutil.move(prepared(root / "made", format, rows_of(format)), root / format)
        shutil.rmtree(root / "made")
    (root / "a.txt").write_text("running text " * 99)
    assert prepare(root / "text", root / "a.txt", tokenizer="bytes", val_fraction=0.1) == 0
    return root


@pytest.fixture
def copy(root, tmp_path):
    """Copies a folder of the root, to be damaged."""
    return lambda name: shutil.copytree(root / name, tmp_path / name)


@pytest.mark.parametrize("format", FORMATS)
def test_examples_are_not_read_as_running_text(root, format):
    with pytest.raises(UserError, match=f"holds examples of the format '{format}', for fine-tuning"):
        open_splits(format, str(root), 8, 256)


@pytest.mark.parametrize("wanted", FORMATS)
def test_running_text_is_not_read_as_examples(root, wanted):
    with pytest.raises(UserError, match="holds running text, and examples of the format"):
        open_examples(root / "text", wanted)


def test_examples_of_another_format_are_not_read(root):
    with pytest.raises(UserError, match=r"holds examples of the format 'chat', and examples .* 'pairs' are"):
        open_examples(root / CHAT, PAIRS)


def test_folder_that_is_not_there_says_how_it_is_made(root):
    with pytest.raises(UserError, match=r"python -m data.tokenize --name none --format chat --input"):
        open_examples(root / "none", CHAT)


@pytest.mark.parametrize("objective", [NEXT_TOKEN, SFT, DPO, GRPO])
@pytest.mark.parametrize("name", ["text", *FORMATS])
def test_a_job_is_told_of_the_wrong_form(root, objective, name):
    wanted = Wanted.of({"dataset": name, "data_dir": str(root), "objective": objective})
    fits = (objective, name) in ((NEXT_TOKEN, "text"), (SFT, CHAT), (DPO, PAIRS), (GRPO, PROMPTS))
    assert [line.partition(" holds ")[0] for line in wanted.lacking()] == [str(root / name)] * (not fits)


def test_a_source_of_a_mixture_is_no_folder_of_examples(root):
    args = Namespace(dataset="text=0.5,chat=0.5", data_dir=str(root))
    (line,) = lacking_sources(args)
    assert "chat holds examples of the format 'chat'" in line


def test_a_built_in_corpus_holds_no_examples(tmp_path):
    wanted = Wanted.of({"dataset": "lib_code", "data_dir": str(tmp_path), "objective": SFT})
    assert "--name lib_code --format chat --input" in wanted.lacking()[0]


def test_an_evaluation_is_told_of_the_wrong_form(root, tmp_path, monkeypatch):
    args = {"dataset": CHAT, "data_dir": str(tmp_path), "model": "base"}
    monkeypatch.setattr(targets, "recorded", lambda path: args)
    assert "for fine-tuning" in targets.unfit(tmp_path / "ckpt.pt", False, str(root))[0]


# vocabularies


def test_too_small_a_vocabulary_is_refused(root):
    with pytest.raises(UserError, match=r"needs --vocab_size [0-9]+ or more, and it is 100"):
        open_examples(root / CHAT, CHAT, 100)


def test_token_beyond_the_vocabulary_is_refused_when_it_is_read(copy):
    folder = copy(CHAT)
    tokens = np.fromfile(folder / "train.bin", dtype="<u2")
    tokens[5] = 300
    tokens.tofile(folder / "train.bin")
    examples = open_examples(folder, CHAT, 256).train
    with pytest.raises(UserError, match="it holds token 300, beyond --vocab_size 256"):
        examples.example(0)


def test_tokenizer_of_a_file(tmp_path):
    path = byte_level(tmp_path / "tokenizer.json")
    splits = open_examples(prepared(tmp_path, CHAT, rows_of(CHAT), tokenizer=path), CHAT)
    tokens, counted = splits.train.example(0)
    assert (splits.stop, tokens[-1], counted[-1]) == (splits.meta["end_of_text"],) * 2 + (True,)


def test_tokenizer_without_an_end_ends_answers_with_byte_0(tmp_path):
    path = byte_level(tmp_path / "tokenizer.json", end=None)
    splits = open_examples(prepared(tmp_path, CHAT, rows_of(CHAT), tokenizer=path), CHAT)
    assert "end_of_text" not in splits.meta and splits.train.example(0)[0][-1] == splits.stop


# identity


@pytest.mark.parametrize("ending", ["bin", "index", "texts"])
def test_every_file_is_part_of_the_identity(root, copy, ending):
    folder = copy(PROMPTS)
    before = identity_of(root / PROMPTS)
    assert identity_of(folder) == before
    path = folder / f"train.{ending}"
    raw = bytearray(path.read_bytes())
    raw[2] ^= 1
    path.write_bytes(raw)
    (line,) = data_differences(identity_of(folder), before)
    assert line.startswith("the training data differ")


def test_source_has_the_identity_of_its_folder(root):
    source = SftSource(open_examples(root / CHAT, CHAT, 256), 32, 1)
    assert source.identity() == identity_of(root / CHAT)
    assert source.parts()["vocabulary"]["tokenizer"] == "bytes"


def test_source_tells_other_tokens(root):
    source = SftSource(open_examples(root / CHAT, CHAT, 256), 32, 1)
    assert "its embeddings begin as those of other tokens" in source.differs(
        {"vocabulary": {"tokenizer": "gpt2"}}
    )


# damage


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("train.index", None, "train.index: No such file or directory"),
        ("train.index", b"", "train.index has 0 bytes"),
        ("train.index", b"\0" * 8, "train.index is of other tokens"),
        ("val.texts", b'{"prompt": "p"}\n', "val.texts is of other prompts"),
        ("train.bin", b"ab" * 7, "train.index is of other tokens"),
        ("meta.json", b"{", "meta.json cannot be read"),
        ("meta.json", b'{"format": "prompts"}', "lacks 'stop' or 'splits'"),
        (
            "meta.json",
            b'{"format": "prompts", "stop": "0", "splits": {"val": {}}}',
            "lacks 'stop' or 'splits'",
        ),
        ("meta.json", b'{"format": "prompts", "stop": 0, "splits": {"val": {}}}', "meta.json says otherwise"),
        ("meta.json", b'{"format": ["prompts"], "stop": 0}', "holds running text"),
    ],
)
def test_damaged_folder_is_one_line(copy, file, content, reason):
    folder = copy(PROMPTS)
    if content is None:
        (folder / file).unlink()
    else:
        (folder / file).write_bytes(content)
    with pytest.raises(UserError) as refused:
        open_examples(folder, PROMPTS, 256)
    assert reason in str(refused.value) and len(str(refused.value).splitlines()) == 1


def test_damaged_text_of_a_prompt_is_refused_when_it_is_read(copy):
    folder = copy(PROMPTS)
    raw = (folder / "train.texts").read_bytes()
    (folder / "train.texts").write_bytes(b"[" + raw[1:])
    source = PromptSource(open_examples(folder, PROMPTS, 256), 32, 8, 1)
    with pytest.raises(UserError, match="the text of prompt 0 cannot be read"):
        source.prompt(0)


@pytest.mark.parametrize(
    ("counted", "reason"),
    [([True, False], "an example begins with an answer"), ([False, False], "an example has no answer")],
)
def test_examples_of_chats_have_answers_to_something(copy, counted, reason):
    folder = copy(CHAT)
    index = np.fromfile(folder / "train.index", dtype="<u4").reshape(-1, 2) & ~np.uint32(COUNTED)
    (index | np.uint32(COUNTED) * np.array(counted)).astype("<u4").tofile(folder / "train.index")
    with pytest.raises(UserError, match=reason):
        open_examples(folder, CHAT)


def test_pairs_are_not_made_of_other_segments(copy):
    folder = copy(CHAT)
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "format": PAIRS}))
    with pytest.raises(UserError, match="an example is no prompt with two answers"):
        open_examples(folder, PAIRS)
