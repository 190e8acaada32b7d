"""From corpora to batches: download.py (OpenWebText2), find.py, streams.py and corpus.py (raw files to
documents), bpe.py and encode.py (text to tokens), tokenize.py, split.py and characters.py (documents to token
bins), inspect.py (a look at bins), bins.py (bins to windows), order.py (which window when), setup.py (the
built-in corpus on first use), vocabulary.py (what the tokens of a training stand for), tokenizer_files.py
(the tokenizer of an exported model).

    splits = open_splits("stdlib", None, sequence_length=256, vocab_size=50304)
    batch = splits.train.batch(numbers)          # batch["inputs"], batch["targets"]
"""

from errors import report_missing_package

report_missing_package()

from data.bins import Splits, TokenWindows, dataset_folder, open_splits  # noqa: E402  (they import numpy)
from data.order import SampleOrder  # noqa: E402

__all__ = ["SampleOrder", "Splits", "TokenWindows", "dataset_folder", "open_splits"]
