"""Best-fit packing: rows, pieces and crops, against the public numbers."""

import numpy as np

from data.bins import TokenWindows
from data.packed import fill
from data.packing import Arrivals, Packer
from tests.reference.cases import each

FILE = "modern_gpt.json.gz"
FIRST = 0  # the token that begins a document


def packer(case):
    lengths = np.array(case["doc_lengths"], dtype=np.int64)
    arrivals = Arrivals(lengths, None, case["docs_per_row_group"], case["docs_per_refill"])
    return Packer(arrivals, case["T"] + 1, case["buffer_size"])


def document(number, length):
    first = 100 * (number + 1) + 1
    return [FIRST, *range(first, first + length - 1)]


def rows_of(case, packed):
    """Tokens of the rows, taken from all documents one after the other."""
    documents = [document(number, length) for number, length in enumerate(case["doc_lengths"])]
    tokens = np.concatenate(documents)
    begins = np.cumsum([1, *case["doc_lengths"]])[packed.documents]  # after the token that begins each
    rows = np.full((packed.ends.size, case["T"] + 1), -1)
    for row, first, end in zip(rows, [0, *packed.ends], packed.ends, strict=False):
        fill(row, tokens, begins[first:end].tolist(), packed.kept[first:end].tolist(), FIRST)
    return rows


@each(FILE, "packing", "cases")
def test_pieces_of_each_row(case):
    packed = packer(case).pack(len(case["pieces"]))
    pieces = np.stack([packed.documents, packed.kept], axis=1)
    assert [part.tolist() for part in np.split(pieces, packed.ends[:-1])] == case["pieces"]


@each(FILE, "packing", "cases")
def test_what_is_cropped(case):
    packed = packer(case).pack(len(case["pieces"]))
    crops = np.stack([packed.documents, packed.kept, packed.dropped], axis=1)
    assert crops[packed.dropped > 0].tolist() == case["crops"]


@each(FILE, "packing", "cases")
def test_tokens_of_each_batch(case):
    going = packer(case)
    for batch in case["batches"]:
        rows = rows_of(case, going.pack(len(batch["rows"])))
        assert rows.tolist() == batch["rows"]


@each(FILE, "packing", "cases")
def test_inputs_and_targets_are_the_row_without_its_last_and_its_first(case):
    rows = rows_of(case, packer(case).pack(len(case["pieces"])))
    batch = TokenWindows(rows.ravel(), case["T"]).as_batch(rows)
    given = [row for batch in case["batches"] for row in batch["rows"]]
    assert batch["inputs"].tolist() == [row[:-1] for row in given]
    assert batch["targets"].tolist() == [row[1:] for row in given]


@each(FILE, "packing", "cases")
def test_how_far_the_documents_have_been_read(case):
    going, documents = packer(case), len(case["doc_lengths"])
    for batch in case["batches"]:
        going.pack(len(batch["rows"]))
        epoch, last = divmod(going.arrived - 1, documents)
        state = {"pq_idx": 0, "rg_idx": last // case["docs_per_row_group"], "epoch": epoch + 1}
        assert state == batch["state"]


@each(FILE, "packing", "cases")
def test_a_packer_goes_on_from_the_state_of_another(case):
    whole = packer(case).pack(len(case["pieces"]))
    first = packer(case)
    begin = first.pack(len(case["pieces"]) // 2)
    second = Packer(first.arrivals, first.row, first.buffer_size, first.arrived, first.waiting)
    end = second.pack(len(case["pieces"]) - begin.ends.size)
    for name in ("documents", "kept", "dropped"):
        joined = [*getattr(begin, name), *getattr(end, name)]
        assert joined == getattr(whole, name).tolist()
