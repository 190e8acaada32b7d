"""Token bins on disk (little endian, uint16, or uint32 where meta.json says so) as windows of tokens; one
mapped copy serves every process of a node.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from config.formats import BESIDE
from config.tokenizers import CHARACTERS, TOKENIZER_FILE
from data.built_in import BUILT_IN
from errors import OwnError, UserError
from files import TRANSIENT_ERRORS, load_json

if TYPE_CHECKING:
    from data.batch import Batch

TOKEN, WIDE_TOKEN = np.dtype("<u2"), np.dtype("<u4")
DTYPES: dict[str, np.dtype[Any]] = {"uint16": TOKEN, "uint32": WIDE_TOKEN}
Tokens = NDArray[np.uint16] | NDArray[np.uint32]
SCAN_TOKENS = 1 << 24
BYTE_VALUES = 256
DEFAULT_DATA_DIR = Path(__file__).parent / "datasets"
FOLDERS = {"owt2": "openwebtext2"}  # names that share another's folder
META = "meta.json"
WORK = ".tokenize"  # in a folder that is being prepared
SPLITS = {"train": "training", "val": "validation"}
LLM_C_HEADER, LLM_C_WIDE = 1024, 20240801  # bytes; magic of its files of 32-bit tokens
LLM_C_MAGICS = (20240520, LLM_C_WIDE)
FOREIGN = {
    b"\x93NUMPY": "a NumPy .npy file",
    b"PAR1": "a parquet file",
    b"\x1f\x8b": "compressed by gzip",
    b"\x28\xb5\x2f\xfd": "compressed by zstandard",
    b"PK\x03\x04": "a zip archive, as torch.save and numpy.savez write",
    b"\x80\x04\x95": "a pickle",
    b"MMIDIDX": "an index of Megatron",
    b"ARROW1": "an Arrow file",
    b"version https://git-lfs": "a pointer of Git LFS (git lfs pull fetches the file)",
}
# of meta.json: types of what it may hold, and what a tokenizer needs of it
META_TYPES = {
    "splits": dict,
    "characters": str,
    "end_of_text": int,
    "tokenizer_file": str,
    "tokenizer_sha256": str,
    "vocab_size": int,
}
NEEDED = {CHARACTERS: ("characters",), TOKENIZER_FILE: ("tokenizer_file", "tokenizer_sha256")}
PRINTABLE = bytes(range(32, 127)) + b"\n\r\t"
PROBES, PROBE_BYTES = 32, 1 << 16  # what is read of a bin to know it again: 2 MiB, whatever its size


def dataset_folder(dataset: str, data_dir: str | None) -> Path:
    """Folder of a dataset: a path as it is, a name below data_dir."""
    if "/" in dataset:
        return Path(dataset)
    return (Path(data_dir) if data_dir else DEFAULT_DATA_DIR) / FOLDERS.get(dataset, dataset)


def label(dataset: str) -> str:
    """What a dataset is called, under whichever of its names or paths it was given."""
    name = Path(dataset).name
    return FOLDERS.get(name, name)


def is_prepared(folder: Path) -> bool:
    return (folder / "train.bin").is_file() and (folder / "val.bin").is_file()


def beside(meta: Mapping[str, Any]) -> tuple[str, ...]:
    """Endings of the files that a split has beside its bin: of examples for fine-tuning."""
    return BESIDE.get(str(meta.get("format")), ())


def other_format(folder: Path, meta: Mapping[str, Any], wanted: str | None) -> str | None:
    """A line where a prepared folder holds something else than examples of this format; None: than running
    text.
    """
    there = meta["format"] if beside(meta) else None
    if there == wanted:
        return None
    held = "running text" if there is None else f"examples of the format {there!r}"
    if wanted is None:
        how = "give another --dataset, or the --objective that these are for"
        return f"{folder} holds {held}, for fine-tuning, and running text is needed: {how}"
    how = f"python -m data.tokenize --format {wanted} makes them"
    return f"{folder} holds {held}, and examples of the format {wanted!r} are needed: {how}"


def need_format(folder: Path, meta: Mapping[str, Any], wanted: str | None) -> None:
    """Raises UserError with `other_format`."""
    wrong = other_format(folder, meta, wanted)
    if wrong:
        raise UserError(wrong)


def refuse_half(folder: Path) -> None:
    """Raises UserError where a folder that is to be prepared holds one bin, and none that was left by a
    preparation, which writes val.bin before train.bin.
    """
    there = [split for split in SPLITS if (folder / f"{split}.bin").exists()]
    if len(there) != 1 or (there == ["val"] and (folder / WORK).is_dir()):
        return
    (missing,) = SPLITS.keys() - there
    raise UserError(
        f"{folder} holds {there[0]}.bin without {missing}.bin, and would be overwritten: put {missing}.bin"
        f" there, or move {there[0]}.bin away"
    )


def dtype_for(size: int) -> np.dtype[Any]:
    """The numbers in which the tokens of a vocabulary of this size are stored."""
    return TOKEN if size <= np.iinfo(TOKEN).max + 1 else WIDE_TOKEN


def dtype_of(meta: Mapping[str, Any]) -> np.dtype[Any]:
    """The numbers of the bins that this meta.json is beside."""
    return DTYPES.get(str(meta.get("dtype")), TOKEN)


def read_meta(folder: Path) -> dict[str, Any]:
    """What tokenize.py wrote about the bins, the path of their tokenizer's file made absolute; empty where
    the folder came from elsewhere.
    """
    try:
        meta = load_json(folder / META)
        if not isinstance(meta, dict):
            raise ValueError("it must hold a JSON object")
        for name, kind in META_TYPES.items():
            if not isinstance(meta.get(name, kind()), kind):
                raise ValueError(f"{name} is {meta[name]!r:.40}")
        for name in NEEDED.get(str(meta.get("tokenizer")), ()):
            if not meta.get(name):
                raise ValueError(f"{name} is missing")
        if meta.get("splits") and str(meta.get("dtype", "uint16")) not in DTYPES:
            raise ValueError(f"dtype is {meta['dtype']!r:.40}, not one of {', '.join(DTYPES)}")
        for split, stated in meta.get("splits", {}).items():
            if not isinstance(stated, dict):
                raise ValueError(f"splits.{split} must be an object, not {stated!r:.40}")
            for name in ("tokens", "largest_token", "documents"):
                if not isinstance(stated.get(name, 0), int):
                    raise ValueError(f"{name} is no whole number")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(
            f"{folder / META} cannot be read ({error}); prepare the dataset again, or delete that file"
        ) from None
    if "tokenizer_file" in meta:
        meta["tokenizer_file"] = str((folder / meta["tokenizer_file"]).absolute())
    return meta


def _probe(path: Path) -> tuple[int, str]:
    """The size of a file in bytes, and `_hash_blocks` of it. Raises UserError."""
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size

            def read(begin: int, count: int) -> bytes:
                file.seek(begin)
                return file.read(count)

            return size, _hash_blocks(size, read)
    except OSError as error:
        if error.errno in TRANSIENT_ERRORS:  # nothing for the user to fix: the chain tries again
            raise
        raise UserError(f"{path}: {error.strerror}") from None


def _hash_blocks(size: int, read: Callable[[int, int], bytes]) -> str:
    """A SHA-256 over a number of bytes and some blocks of them, spread evenly. read: of (begin, count)."""
    digest = hashlib.sha256(str(size).encode())
    last = max(size - PROBE_BYTES, 0)
    for begin in sorted({last * number // (PROBES - 1) for number in range(PROBES)}):
        digest.update(read(begin, PROBE_BYTES))
    return digest.hexdigest()


def identity_of_tokens(tokens: Tokens) -> dict[str, Any]:
    """What identifies tokens in memory, in the form that `identity_of` has for a split."""
    held = np.ascontiguousarray(tokens).view(np.uint8)
    blocks = _hash_blocks(held.size, lambda begin, count: held[begin : begin + count].tobytes())
    return {"tokens": int(tokens.size), "blocks": blocks}


def identity_of(folder: Path) -> dict[str, dict[str, Any]] | None:
    """What identifies a dataset, whatever its name; None where it is not prepared.

    For each split: `tokens`; `blocks`, a hash of the file's size and of some blocks of it, of examples also
    of the files beside it; `sha256` of the whole file as meta.json states it, or None. Takes a few
    milliseconds for files of any size. Raises UserError.
    """
    if not is_prepared(folder):
        return None
    meta, found = read_meta(folder), {}
    described, token_bytes = meta.get("splits", {}), dtype_of(meta).itemsize
    for split in SPLITS:
        size, blocks = _probe(folder / f"{split}.bin")
        for ending in beside(meta):
            further = _probe(folder / f"{split}.{ending}")
            blocks = hashlib.sha256(f"{blocks} {further}".encode()).hexdigest()
        stated = described.get(split, {})
        found[split] = {
            "tokens": stated.get("tokens", size // token_bytes),
            "blocks": blocks,
            "sha256": stated.get("sha256"),
        }
    return found


def _differs(now: Mapping[str, Any], then: Mapping[str, Any]) -> bool:
    """Whether two descriptions of a split are of other data, by what both of them state."""
    return any(
        now.get(key) != then.get(key)
        for key in ("tokens", "blocks", "sha256")
        if now.get(key) is not None and then.get(key) is not None
    )


def _described(split: Mapping[str, Any]) -> str:
    hashes = [f"{key} {split[key]:.12}" for key in ("sha256", "blocks") if isinstance(split.get(key), str)]
    return f"{split.get('tokens')} tokens" + (f" ({', '.join(hashes)})" if hashes else "")


def data_differences(now: Mapping[str, Any] | None, then: Mapping[str, Any] | None) -> list[str]:
    """A line for each split, or other part of a source's identity, that differs from the checkpoint's.

    now: from `identity_of`, or from another source. then: the same, as a checkpoint or a summary recorded it;
    older ones have {"train_tokens": N}. None, and anything that one of the two does not state, is no
    difference.
    """
    now, then = now or {}, then or {}
    lines = []
    for split, called in SPLITS.items():
        mine, theirs = now.get(split), then.get(split)
        if theirs is None and f"{split}_tokens" in then:
            theirs = {"tokens": then[f"{split}_tokens"]}
        if isinstance(mine, Mapping) and isinstance(theirs, Mapping) and _differs(mine, theirs):
            lines.append(
                f"the {called} data differ: the checkpoint's have {_described(theirs)}, these"
                f" {_described(mine)}"
            )
    if "mixture" in now and "mixture" in then:
        lines += mixture_differences(now["mixture"], then["mixture"])
    for name in sorted(now.keys() & then.keys() - SPLITS.keys() - {"mixture"}):
        if now[name] != then[name]:
            lines.append(
                f"the data differ: the checkpoint's {name} is {then[name]!r}, this one's {now[name]!r}"
            )
    return lines


def mixture_differences(now: Mapping[str, Any], then: Mapping[str, Any]) -> list[str]:
    """As `data_differences`, of what `data.sources.mixture_identity` says of two mixtures."""
    lines = []
    for name in ("sampling", "weights"):
        if now[name] != then[name]:
            lines.append(f"the mixture's {name}: the checkpoint has {then[name]}, this run {now[name]}")
    for source in sorted(now["sources"].keys() & then["sources"].keys()):
        for line in data_differences(now["sources"][source], then["sources"][source]):
            lines.append(f"source {source}: {line}")
    return lines


def map_tokens(path: Path, populate: bool = False, dtype: np.dtype[Any] = TOKEN) -> Tokens:
    """The tokens of a bin, mapped read-only. populate: read all of it now. dtype: as `dtype_of` has it.

    The mapping is shared: a node holds one copy of the file for all its processes, and the kernel may drop it
    under memory pressure, where a private copy would end in the out-of-memory killer. Raises UserError.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size == 0 or size % dtype.itemsize:
                raise UserError(
                    f"{path} has {size} bytes: not a file of {dtype.name} tokens; prepare the dataset again"
                )
            flags = mmap.MAP_SHARED | (getattr(mmap, "MAP_POPULATE", 0) if populate else 0)
            return np.frombuffer(mmap.mmap(file.fileno(), 0, flags=flags, prot=mmap.PROT_READ), dtype=dtype)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None


def largest_token(tokens: Tokens) -> int:
    """The largest token of a bin, read in slices."""
    return max(int(tokens[i : i + SCAN_TOKENS].max()) for i in range(0, tokens.size, SCAN_TOKENS))


def sha256(tokens: Tokens) -> str:
    digest = hashlib.sha256()
    for begin in range(0, tokens.size, SCAN_TOKENS):
        digest.update(tokens[begin : begin + SCAN_TOKENS].data)
    return digest.hexdigest()


def ends_of(tokens: Tokens, end_of_text: int) -> NDArray[np.int64]:
    """Places of the tokens that end documents, found in slices."""
    found = []
    for begin in range(0, tokens.size, SCAN_TOKENS):
        found.append(np.flatnonzero(tokens[begin : begin + SCAN_TOKENS] == end_of_text) + begin)
    return np.concatenate(found)


class TokenWindows:
    """Consecutive windows of sequence_length tokens; a short last one is left out.

    Tokens beyond vocab_size are refused when they are read, even if meta.json states a smaller largest token:
    the file may have changed since, and a model would fail with a device error. None: any token.
    """

    def __init__(self, tokens: Tokens, sequence_length: int, vocab_size: int | None = None) -> None:
        self.tokens, self.length, self.vocab_size = tokens, sequence_length, vocab_size
        self.n_windows = (tokens.size - 1) // sequence_length

    def __len__(self) -> int:
        return self.n_windows

    def batch(self, numbers: NDArray[np.int64]) -> Batch:
        """As `at`, of the windows of these numbers (N,)."""
        return self.at(numbers * self.length)

    def at(self, starts: NDArray[np.int64]) -> Batch:
        """`inputs` and `targets` that begin at some tokens, each (len(starts), sequence_length) int64.

        A loss over them is a mean over tokens. Raises UserError for a token that the vocabulary lacks.
        """
        return self.as_batch(self.tokens[starts[:, None] + np.arange(self.length + 1)])

    def as_batch(self, chosen: Tokens) -> Batch:
        """As `at`, of tokens (N, sequence_length + 1) that were taken from the bin."""
        import torch  # late: preparing data starts processes that have no use for it

        from data.batch import Batch

        if self.vocab_size is not None and chosen.max(initial=0) >= self.vocab_size:
            raise OwnError(
                f"the data holds token {chosen.max()}, beyond --vocab_size {self.vocab_size}: it is damaged "
                "(python -m data.inspect tells more); prepare the dataset again"
            )
        tokens = torch.from_numpy(chosen.astype(np.int64))
        targets = tokens[:, 1:]
        return Batch({"inputs": tokens[:, :-1], "targets": targets}, targets.numel())


@dataclass(frozen=True)
class Splits:
    train: TokenWindows
    val: TokenWindows
    folder: Path
    meta: dict[str, Any]


def check_tokens(
    path: Path, tokens: Tokens, vocab_size: int, sequence_length: int, known_largest: int | None
) -> None:
    """Raises UserError where the vocabulary lacks a token of the bin, or the bin holds less than one
    window.
    """
    if tokens.size - 1 < sequence_length:
        raise UserError(
            f"{path} holds {tokens.size} tokens, too few for one sequence of {sequence_length}"
            " (--sequence_length)"
        )
    largest = largest_token(tokens) if known_largest is None else known_largest
    if largest >= vocab_size:
        raise UserError(
            f"{path} holds token {largest}, but --vocab_size is {vocab_size}: it must be at least"
            f" {largest + 1}"
        )


def check_format(path: Path, tokens: Tokens, meta: Mapping[str, Any]) -> None:
    """Raises UserError for a bin that is not plain uint16, as other tools write them, and says how to convert
    it.

    Bins that meta.json describes are believed, as are those whose dtype it states.
    """
    if meta.get("splits") or str(meta.get("dtype")) in DTYPES:
        return
    head = tokens[:PROBE_BYTES].tobytes()
    wrong = _foreign_header(head, tokens.size * TOKEN.itemsize) or _wider_numbers(tokens)
    if wrong is None and tokens.size >= 256 and len(head.translate(None, PRINTABLE)) < 0.05 * len(head):
        wrong = "it is plain text; python -m data.tokenize --input makes bins of text"
    if wrong:
        raise UserError(
            f"{path} does not hold plain uint16 tokens: {wrong} "
            f'(if they are right all the same, write {{"dtype": "uint16"}} into {META} beside it)'
        )


def _conversion(dtype: str, skip: int) -> str:
    begin = f", offset={skip}" if skip else ""
    return (
        "convert it: python -c \"import numpy as np; np.fromfile('OLD',"
        f" '{dtype}'{begin}).astype('<u2').tofile('NEW')\""
    )


def _foreign_header(head: bytes, size: int) -> str | None:
    """What a bin's first bytes say it is, if they are those of another format."""
    if len(head) >= LLM_C_HEADER:
        words = np.frombuffer(head[:LLM_C_HEADER], dtype="<u4")
        magic, version, count = words[:3].tolist()
        wide = size - LLM_C_HEADER == 4 * count
        if magic in LLM_C_MAGICS or (
            count and not words[8:].any() and size - LLM_C_HEADER in (2 * count, 4 * count)
        ):
            return (
                f"it begins with a header as llm.c writes (magic {magic}, version {version}, {count}"
                " tokens); " + _conversion("<u4" if wide or magic == LLM_C_WIDE else "<u2", LLM_C_HEADER)
            )
    return next(
        (
            f"it is {name}; convert it to bare tokens first"
            for magic, name in FOREIGN.items()
            if head.startswith(magic)
        ),
        None,
    )


def _wider_numbers(tokens: Tokens) -> str | None:
    """Whether the tokens look like the halves of 32-bit numbers, or the quarters of 64-bit ones."""
    last = max(0, tokens.size - PROBE_BYTES) // 4 * 4
    parts = [tokens[begin : begin + PROBE_BYTES] for begin in sorted({0, last // 8 * 4, last})]
    sample = np.concatenate([part[: part.size // 4 * 4] for part in parts]).reshape(-1, 4)
    if sample.size < 64:
        return None
    low, high = sample[:, 0::2], sample[:, 1::2]
    for order, value, zero in (("<", low, high), (">", high, low)):
        # of a vocabulary beyond 65,535, the upper halves are small numbers; below, all are 0
        if value.any() and (
            not zero.any() or (zero.max() <= 3 and value.max() > 255 and np.unique(value).size > 32)
        ):
            columns = [0, 1, 2] if order == ">" else [1, 2, 3]
            wide = not sample[:, columns].any()
            bits = 64 if wide else 32
            every = "three of four numbers are" if wide else "every second number is"
            if zero.any():
                zeros = "nearly 0"
                advice = "some tokens are beyond what 16 bits hold"
            else:
                zeros = "0"
                advice = _conversion(f"{order}u{bits // 8}", 0)
            if order == "<" and bits == 32:
                advice += f', or write {{"dtype": "uint32"}} into {META}, and they are read as they are'
            return f"{every} {zeros}, as in {bits}-bit numbers read as 16-bit ones; {advice}"
    return None


def how_to_prepare(dataset: str, vocab_size: int | None = None, format: str | None = None) -> str:
    """The command that makes a dataset's bins. vocab_size: of the model that they are for. format: of
    examples for fine-tuning.
    """
    if format is None and dataset in ("owt2", "openwebtext2"):
        return "bash iridis/download-dataset/job.sh --full, then bash iridis/extract-tokenize-dataset/job.sh"
    command = f"python -m data.tokenize --name {shlex.quote(Path(dataset).name)}"
    if format is None and dataset in BUILT_IN:
        return command
    in_bytes = " --tokenizer bytes" if vocab_size == BYTE_VALUES else ""
    in_form = "" if format is None else f" --format {format}"
    return f"{command}{in_form} --input FILES_OR_FOLDER{in_bytes}"


def not_prepared(dataset: str, folder: Path, vocab_size: int | None = None, format: str | None = None) -> str:
    how = how_to_prepare(dataset, vocab_size, format)
    if how.startswith("python") and folder.absolute().parent != DEFAULT_DATA_DIR.absolute():
        how += f" --data_dir {shlex.quote(str(folder.parent))}"
    return f"dataset {dataset!r} is not prepared: {folder} lacks train.bin or val.bin; {how}"


def open_splits(
    dataset: str, data_dir: str | None, sequence_length: int, vocab_size: int, populate: bool = False
) -> Splits:
    """Both splits of a prepared dataset, checked against the model's vocabulary. Raises UserError."""
    folder = dataset_folder(dataset, data_dir)
    if not is_prepared(folder):
        raise UserError(not_prepared(dataset, folder, vocab_size))
    meta = read_meta(folder)
    need_format(folder, meta, None)
    if meta.get("vocab_size", 0) > vocab_size:
        raise UserError(
            f"the tokenizer of {folder} has {meta['vocab_size']} tokens, but --vocab_size is {vocab_size}: it"
            f" must be at least {meta['vocab_size']}"
        )
    windows = {}
    for name in ("train", "val"):
        path = folder / f"{name}.bin"
        tokens = map_tokens(path, populate, dtype_of(meta))
        described = meta.get("splits", {}).get(name, {})
        if described and described.get("tokens") != tokens.size:
            raise UserError(
                f"{path} holds {tokens.size} tokens, but {META} says {described.get('tokens')}: the file is"
                " damaged; prepare the dataset again"
            )
        check_format(path, tokens, meta)
        check_tokens(path, tokens, vocab_size, sequence_length, described.get("largest_token"))
        windows[name] = TokenWindows(tokens, sequence_length, vocab_size)
    return Splits(windows["train"], windows["val"], folder, meta)
