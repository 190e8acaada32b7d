"""Examples for fine-tuning, as data.tokenize --format stores them and as sources read them."""

import json

import numpy as np
import pytest
import torch

from config.formats import CHAT, PAIRS, PROMPTS
from data.example_sources import PairSet, PairSource, PromptSet, PromptSource, SftSet, SftSource
from data.examples import open_examples
from errors import UserError
from tests.corpora import prepare

STOP = 0  # of bytes
SOURCES = {CHAT: SftSource, PAIRS: PairSource}
SETS = {CHAT: SftSet, PAIRS: PairSet}


def rows_of(format, count=60):
    """Examples of unequal lengths, each of them different."""
    rows = []
    for number in range(count):
        prompt, answer = f"{number}? " + "x" * (number % 7), f"is {number}" + "!" * (number % 5)
        rows.append(
            {
                CHAT: {"prompt": prompt, "completion": answer},
                PAIRS: {"prompt": prompt, "chosen": answer, "rejected": f"no {number}"},
                PROMPTS: {"prompt": prompt, "answer": answer},
            }[format]
        )
    return rows


def write(path, rows):
    path.write_bytes(b"".join(json.dumps(row).encode() + b"\n" for row in rows))
    return path


def prepared(folder, format, rows, **options):
    """A folder of these examples, in bytes unless a tokenizer is given."""
    path = write(folder / "rows.jsonl", rows)
    options = {"tokenizer": "bytes", "val_share": 0.2, **options}
    assert prepare(folder / "set", path, format=format, **options) == 0
    return folder / "set"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A prepared folder of each format."""
    return {
        format: prepared(tmp_path_factory.mktemp(format), format, rows_of(format))
        for format in (CHAT, PAIRS, PROMPTS)
    }


def source_of(folders, format, sequence_length=32):
    splits = open_examples(folders[format], format, 256)
    if format == PROMPTS:
        return PromptSource(splits, sequence_length, 16, 7)
    return SOURCES[format](splits, sequence_length, 7)


def set_of(folders, format, sequence_length=32):
    splits = open_examples(folders[format], format, 256)
    if format == PROMPTS:
        return PromptSet(splits.val, sequence_length, splits.stop, 16)
    return SETS[format](splits.val, sequence_length, splits.stop)


def stored(splits):
    """Of both splits: what `example` gives, by the first line of the rows they come from."""
    return [part.example(number) for part in (splits.train, splits.val) for number in range(len(part))]


def text(tokens):
    return bytes(tokens.tolist()).decode()


def counted_text(tokens, counted):
    return text(tokens[counted]), text(tokens[~counted])


def only(folder, format, row):
    """The one example that is stored of a row."""
    splits = open_examples(prepared(folder, format, [row, row]), format)
    return splits.train.example(0)


# what is stored


def test_completion_is_counted_and_its_prompt_is_not(tmp_path):
    found = only(tmp_path, CHAT, {"prompt": "2+2=", "completion": "4"})
    assert counted_text(*found) == ("4\0", "2+2=")


def test_every_answer_of_a_chat_is_counted(tmp_path):
    turns = [("system", "Sum."), ("user", "1"), ("assistant", "one"), ("user", "2"), ("assistant", "two")]
    row = {"messages": [{"role": role, "content": content} for role, content in turns]}
    assert counted_text(*only(tmp_path, CHAT, row)) == (
        "one\0two\0",
        "<|system|>\nSum.\n<|user|>\n1\n<|assistant|>\n<|user|>\n2\n<|assistant|>\n",
    )


def test_pair_is_a_prompt_and_two_answers_that_end(tmp_path):
    found = only(tmp_path, PAIRS, {"prompt": "p", "chosen": "good", "rejected": "bad"})
    assert [*map(text, found)] == ["p", "good\0", "bad\0"]


def test_prompt_keeps_its_text_and_its_answer(tmp_path):
    found = only(tmp_path, PROMPTS, {"prompt": "naïve\n?", "answer": "4"})
    assert (text(found.tokens), found.text, found.answer) == ("naïve\n?", "naïve\n?", "4")


def test_prompt_needs_no_answer(tmp_path):
    assert only(tmp_path, PROMPTS, {"prompt": "write"}).answer is None


def test_answers_end_with_the_end_of_text_where_there_is_one(tmp_path, bpe_cache):
    row = {"prompt": "2+2=", "completion": "4"}
    splits = open_examples(prepared(tmp_path, CHAT, [row, row], tokenizer="gpt2"), CHAT)
    tokens, counted = splits.train.example(0)
    assert (splits.stop, tokens[-1], counted[-1]) == (50256, 50256, True)


@pytest.mark.parametrize("format", [CHAT, PAIRS, PROMPTS])
def test_every_example_is_in_one_of_the_splits(folders, format):
    splits = open_examples(folders[format], format)
    texts = [str(found) for found in stored(splits)]
    assert (len(texts), len(set(texts))) == (60, 60)


def test_forms_of_the_same_rows_are_split_alike(folders):
    prompts = {found.text for found in map(open_examples(folders[PROMPTS]).val.example, range(5))}
    pairs = {text(found[0]) for found in map(open_examples(folders[PAIRS]).val.example, range(5))}
    assert prompts == pairs


# sources


@pytest.mark.parametrize("format", [CHAT, PAIRS, PROMPTS])
def test_samples_do_not_depend_on_the_cut_nor_on_the_order(folders, format):
    source = source_of(folders, format)
    whole = source.samples(3, 40, 30)
    second, first = source.samples(3, 57, 13), source.samples(3, 40, 17)
    for name, tensor in whole.tensors.items():
        assert torch.equal(tensor, torch.cat([first[name], second[name]])), name


@pytest.mark.parametrize("format", [CHAT, PAIRS, PROMPTS])
def test_items_are_those_of_the_batches(folders, format):
    source = source_of(folders, format)
    for first in range(0, 100, 9):
        assert source.items(0, first, 9) == source.samples(0, first, 9).count


@pytest.mark.parametrize("format", [CHAT, PAIRS, PROMPTS])
def test_an_epoch_has_every_example_once(folders, format):
    source = source_of(folders, format)
    n = len(source.set)
    assert sorted(source.order.windows(n, n)) == list(range(n))


def test_count_of_sft_is_the_number_of_counted_targets(folders):
    batch = source_of(folders, CHAT).samples(0, 0, 12)
    assert batch.count == int(batch["counted"].sum())


def test_sft_targets_follow_their_inputs(folders):
    batch = source_of(folders, CHAT).samples(0, 0, 12)
    assert torch.equal(batch["inputs"][:, 1:], batch["targets"][:, :-1])


def test_counted_targets_are_the_answer(folders):
    batch = set_of(folders, CHAT).batch(np.array([0]))
    answer = batch["targets"][batch["counted"]]
    assert text(answer).startswith("is ") and answer[-1] == STOP


@pytest.mark.parametrize("name", ["chosen", "rejected"])
def test_masks_of_a_pair_are_its_answers(folders, name):
    pairs = set_of(folders, PAIRS)
    batch = pairs.batch(np.array([2]))
    answer = batch[name][0, 1:][batch[f"{name}_mask"][0]]
    assert answer.tolist() == pairs.examples.example(2)[("chosen", "rejected").index(name) + 1].tolist()


def test_prompts_say_which_they_are(folders):
    source = source_of(folders, PROMPTS)
    batch = source.samples(1, 20, 4)
    assert batch["samples"].tolist() == [20, 21, 22, 23]
    for row, length, number in zip(batch["prompts"], batch["lengths"], batch["numbers"], strict=True):
        assert text(row[:length]) == source.prompt(int(number)).text


@pytest.mark.parametrize("format", [CHAT, PAIRS, PROMPTS])
def test_too_long_examples_are_left_out_and_said(folders, format):
    source = source_of(folders, format, 22 if format == PROMPTS else 12)
    assert 0 < len(source.set) < len(source.splits.train)
    left_out = len(source.splits.train) - len(source.set)
    assert f"{left_out} are too long and left out" in source.first_lines(10)[0]


@pytest.mark.parametrize("format", [CHAT, PAIRS, PROMPTS])
def test_a_longest_example_that_fits_is_whole(folders, format):
    source = source_of(folders, format)
    longest = int(source.set.examples.lengths.max())
    if format == PAIRS:
        longest = int(source.set.examples.longest.max())
    exact = source_of(folders, format, longest + 16 if format == PROMPTS else longest - 1)
    assert exact.set.left_out == 0


@pytest.mark.parametrize("format", [CHAT, PAIRS, PROMPTS])
def test_no_example_that_fits_is_refused(folders, format):
    with pytest.raises(UserError, match=r"none of its 4[0-9] examples fits"):
        source_of(folders, format, 18 if format == PROMPTS else 2)


def test_no_room_for_a_prompt_is_refused(folders):
    with pytest.raises(UserError, match="leaves no room for a prompt"):
        source_of(folders, PROMPTS, 16)
