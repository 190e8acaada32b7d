"""From corpora to batches.

download.py                                   OpenWebText2 and the BPE ranks
find.py, streams.py, corpus.py                raw files to documents
tokenizer.py, vocabulary.py                   text to tokens and back; which tokenizer
bpe.py, encode.py                             GPT-2's byte pairs
tokenizer_json.py                             the form of Hugging Face's tokenizers: ours, and a user's own
tokenize.py, workers.py, split.py             documents to token bins
characters.py                                 the same, one token a character
inspect.py                                    shows and verifies bins
bins.py, order.py                             bins to windows; which window when
batch.py, token_source.py, mixture.py         what a training takes its samples from
curriculum.py                                 sequences that grow, sources that get harder
packing.py, packed.py                         whole documents in rows; their index on disk, rows as samples
sources.py, text.py                           one dataset, or those of a mixture, by flags
setup.py, built_in.py                         built-in corpora, made on first use
sizes.py, tokenizer_files.py                  bytes of its tokens; its files beside an exported model
genomes/                                      pairs of haplotypes: another science's data
unigram.py                                    a baseline without context

splits = open_splits("stdlib", None, sequence_length=256, vocab_size=50304)
batch = splits.train.batch(numbers)          # batch["inputs"], batch["targets"]
"""

import errors  # noqa: F401  (it speaks where a program cannot start)
from data.bins import Splits, TokenWindows, dataset_folder, open_splits
from data.order import SampleOrder

__all__ = ["SampleOrder", "Splits", "TokenWindows", "dataset_folder", "open_splits"]
