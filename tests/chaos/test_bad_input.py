"""Bad input to every program, in every kind of file that it reads: exit code 2 and a line for each problem,
or success; nothing is lost.

Cases are drawn with fixed seeds. All files of a case lie in one folder, in which the program runs.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import random
import re
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from config.flags import FLAGS
from optim.checkpoint import load_checkpoint, save_checkpoint
from tests.chaos import scale
from tests.chaos.forks import Outcome, fork, start, wait_for
from tests.chaos.mutations import ANY_JSON, changed_settings, changed_state, damaged, json_texts, line_texts
from tests.corpora import compress, lines, write_tar
from tests.programs import PEER, ROOT, STOPPED, TINY, copy_sources, flags

pytestmark = pytest.mark.slow

ADM = (
    PEER
    / "exps/owt2/adaptive_cotformer_mod_efficient_sigmoid_crw_lnmid_de_random_factor_single_final"
    / "official_adm"
)
MODEL = (
    "--checkpoint",
    "adm",
    "--data_dir",
    "data",
    "--dataset",
    "bytes",
    "--device",
    "cpu",
    "--eval_sample_size",
    "192",
)
RUN = "exps/bytes/cotformer_full_depth_lnmid_depthemb/run"
SETTINGS = {
    **TINY,
    "model": "lncot",
    "data_dir": "data",
    "dataset": "bytes",
    "iterations": 4,
    "save_checkpoint_freq": 2,
    "keep_checkpoints": 0,
    "eval_freq": 2,
    "eval_batches": 1,
    "log_freq": 1,
    "batch_size": 2,
    "acc_steps": 1,
    "sequence_length": 24,
    "seed": 3,
    "results_base_folder": "exps",
    "exp_name": "run",
}
TRAIN = tuple(flags(Path("exps"), **SETTINGS))
BINS = ("data/bytes/train.bin", "data/bytes/val.bin")
CORPUS = ("corpus.tar", "corpus.jsonl", "corpus.jsonl.gz", "corpus.jsonl.zst")
# more of these asks for more memory, not for less sense
LARGE = frozenset(("n_layer", "n_embd", "n_repeat", "vocab_size", "sequence_length"))


@dataclass(frozen=True)
class Use:
    """A program and what it needs. parts: of the stock. files: those to damage. writes: what the program
    is there to write over.
    """

    program: str
    words: tuple[str, ...]
    parts: tuple[str, ...] = ()
    files: tuple[str, ...] = ()
    writes: tuple[str, ...] = ()
    codes: tuple[int, ...] = (0, 2)
    env: dict[str, str] = field(default_factory=dict)


USES = {
    "eval": Use(
        "eval.py",
        (*MODEL, "--output_dir", "out"),
        ("adm", "data"),
        ("adm/ckpt.pt", "adm/summary.json", *BINS, "data/bytes/meta.json"),
        ("out/eval_summary_ckpt.json",),
    ),
    "generate": Use(
        "generate.py",
        (
            *MODEL,
            "--prompt",
            "ab",
            "c",
            "--max_new_tokens",
            "4",
            "--budget",
            "0.8",
            "--calibration_tokens",
            "96",
        ),
        ("adm", "data"),
        ("adm/ckpt.pt", "adm/summary.json", BINS[0], "data/bytes/meta.json"),
    ),
    "sweep": Use(
        "get_ppl_per_mac.py",
        (*MODEL, "--output_dir", "out", "--thresholds", "0.2", "0.5", "--router_sample_size", "192"),
        ("adm", "data", "out"),
        ("out/ppl_per_mac.json", "adm/ckpt.pt", *BINS),
        ("out/ppl_per_mac.json",),
    ),
    "routers": Use(
        "get_router_weights.py",
        (*MODEL, "--output_dir", "scores"),
        ("adm", "data"),
        ("adm/ckpt.pt", BINS[1]),
        ("scores/*",),
    ),
    "downstream": Use(
        "downstream.py",
        (*MODEL, "--tasks", "arc_easy", "--limit", "1", "--output_dir", "out"),
        ("adm", "data"),
        ("adm/ckpt.pt",),
    ),
    "export": Use("models.export", ("adm", "exported"), ("adm",), ("adm/ckpt.pt", "adm/summary.json")),
    "fig2": Use(
        "plot_fig2.py",
        ("out", "--output_dir", "figures"),
        ("out", "exps"),
        ("out/eval_summary_ckpt.json", "out/ppl_per_mac.json"),
    ),
    "fig3": Use("plot_fig3.py", ("--output_dir", "figures")),
    "fig4": Use(
        "plot_fig4.py",
        ("out/ppl_per_mac.json", "--output_dir", "figures"),
        ("out",),
        ("out/ppl_per_mac.json",),
    ),
    "fig5": Use(
        "plot_fig5.py",
        ("out/router_weights.npz", "--output_dir", "figures"),
        ("out",),
        ("out/router_weights.npz", "out/router_weights_meta.json"),
    ),
    "report": Use(
        "python -m report",
        ("out", "exps", "--output", "reports"),
        ("out", "exps"),
        ("out/eval_summary_ckpt.json", "out/ppl_per_mac.json", f"{RUN}/summary.json"),
    ),
    "status": Use(
        "status.py",
        ("exps",),
        ("exps",),
        (f"{RUN}/status.json", f"{RUN}/segments.jsonl", f"{RUN}/metrics.jsonl", f"{RUN}/summary.json"),
        codes=(0,),
    ),
    "status json": Use(
        "status.py",
        ("exps", "--json"),
        ("stopped",),
        (f"{RUN}/status.json", f"{RUN}/segments.jsonl"),
        codes=(0,),
    ),
    "status page": Use(
        "status.py",
        ("exps", "--html", "page.html"),
        ("exps",),
        (f"{RUN}/metrics.jsonl", f"{RUN}/segments.jsonl", f"{RUN}/status.json"),
        codes=(0,),
    ),
    "inspect": Use(
        "data.inspect",
        ("data/words",),
        ("data",),
        tuple(f"data/words/{name}" for name in ("train.bin", "val.bin", "meta.json")),
        ("data/words/document_lengths.png",),
        (0, 1, 2),
    ),
    "inspect characters": Use(
        "data.inspect", ("data/bytes",), ("data",), (*BINS, "data/bytes/meta.json"), codes=(0, 1, 2)
    ),
    "tokenize": Use(
        "data.tokenize",
        ("--name", "new", "--data_dir", "data", "--workers", "1", "--max-bad", "1", "--input", "corpus.tar"),
        ("corpus",),
        ("corpus.tar",),
    ),
    "tokenize characters": Use(
        "data.tokenize", ("--name", "new-char", "--data_dir", "data", "--input", *CORPUS), ("corpus",), CORPUS
    ),
    "download": Use(
        "data.download",
        ("--full", "--source", "source", "--data_dir", "data"),
        ("source",),
        ("source/openwebtext2.jsonl.zst.tar", "source/openwebtext2.jsonl.zst.tar.sha256"),
    ),
    "check": Use(
        "data.download",
        ("--check", "--data_dir", "got"),
        ("got",),
        tuple(f"got/openwebtext2/openwebtext2.jsonl.zst.tar{end}" for end in ("", ".json")),
        codes=(0, 1, 2),
    ),
    "resume": Use(
        "main.py",
        TRAIN,
        ("stopped", "data"),
        (
            f"{RUN}/ckpt_2.pt",
            f"{RUN}/status.json",
            f"{RUN}/segments.jsonl",
            f"{RUN}/metrics.jsonl",
            f"{RUN}/lock",
            *BINS,
            "data/bytes/meta.json",
        ),
        tuple(
            f"{RUN}/{name}"
            for name in (
                "status.json",
                "segments.jsonl",
                "metrics.jsonl",
                "lock",
                "train.log",
                "outcome.json",
            )
        ),
        (0, 2, STOPPED),
    ),
    "finished": Use(
        "main.py",
        TRAIN,
        ("exps", "data"),
        (f"{RUN}/summary.json", f"{RUN}/segments.jsonl", f"{RUN}/metrics.jsonl"),
        tuple(f"{RUN}/{name}" for name in ("metrics.jsonl", "lock", "train.log", "outcome.json")),
        (0, 2, STOPPED),
    ),
    "chain": Use(
        "iridis.chain",
        (RUN, "--code", "1"),
        ("stopped",),
        tuple(f"{RUN}/{name}" for name in ("segments.jsonl", "status.json", "metrics.jsonl")),
        tuple(
            f"{RUN}/{name}"
            for name in ("segments.jsonl", "status.json", "metrics.jsonl", "lock", "outcome.json")
        ),
        (0,),
    ),
}
TYPED = [name for name in USES if name != "chain"]  # by users, not by jobs alone
FILES = [(name, file) for name, use in USES.items() for file in use.files]
JSON_FILES = [
    (name, file) for name, file in FILES if file.endswith((".json", ".jsonl")) and "corpus" not in file
]
CHECKPOINTS = [(name, file) for name, file in FILES if file.endswith(".pt")]
ARRAYS: dict[str, Any] = {
    "no array of that name": {"scores": np.zeros((4, 2), "f4")},
    "one axis": np.zeros(4, "f4"),
    "three axes": np.zeros((2, 2, 2), "f4"),
    "no token": np.zeros((0, 2), "f4"),
    "no repeat": np.zeros((4, 0), "f4"),
    "integers": np.zeros((4, 2), "i8"),
    "texts": np.full((4, 2), "x"),
    "objects": np.full((4, 2), None),
    "complex numbers": np.zeros((4, 2), "c8"),
    "NaN": np.full((4, 2), np.nan, "f4"),
    "above one": np.full((4, 2), 1.5, "f4"),
    "negative": np.full((4, 2), -0.5, "f4"),
    "float16": np.zeros((4, 2), "f2"),
    "fields": np.zeros((4, 2), [("a", "f4")]),
    "a number": np.float32(0.5),
}


# the stock: real output of the programs, and the folder of a case


class Stock:
    """What cases are copied from. They all run at one place, for some files hold its path."""

    def __init__(self, base: Path, ranks: Path) -> None:
        self.parts, self.folder, self.env = (
            base / "stock",
            base / "case",
            {"TIKTOKEN_CACHE_DIR": str(ranks), "HF_HUB_OFFLINE": "1"},
        )
        self.parts.mkdir()
        self.states: dict[str, dict[str, Any]] = {}

    def lay_out(self, parts: tuple[str, ...]) -> Path:
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir()
        for part in parts:
            shutil.copytree(self.parts / part, self.folder, dirs_exist_ok=True)
        return self.folder

    def keep(self, part: str, *names: str) -> None:
        for name in names:
            (self.parts / part / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(self.folder / name, self.parts / part / name)

    def make(self, name: str, *more: str) -> None:
        """Run a program on good input."""
        use = USES[name]
        outcome = fork(use.program, [*use.words, *more], self.folder, **self.env)
        assert outcome.code == 0, outcome

    def state(self, file: str) -> dict[str, Any]:
        """Content of a checkpoint of the stock, with its settings; not to be changed."""
        if file not in self.states:
            state = load_checkpoint(self.folder / file)
            if "args" not in state:
                state["args"] = json.loads((self.folder / file).with_name("summary.json").read_text())["args"]
            self.states[file] = state
        return self.states[file]


def write_bytes_dataset(folder: Path) -> None:
    """Part of the small data, described as characters, so that a text can be a prompt."""
    folder.mkdir(parents=True)
    splits = {}
    for name, count in (("train", 6000), ("val", 600)):
        tokens = np.fromfile(PEER / f"datasets/openwebtext2/{name}.bin", dtype="<u2", count=count)
        tokens.tofile(folder / f"{name}.bin")
        splits[name] = {"documents": 1, "tokens": count, "largest_token": int(tokens.max())}
    (folder / "meta.json").write_text(
        json.dumps(
            {
                "tokenizer": "char",
                "characters": "".join(map(chr, range(32, 288))),
                "bytes": 6600,
                "bad_lines": 0,
                "splits": {
                    name: {**described, "sha256": sha256(folder / f"{name}.bin")}
                    for name, described in splits.items()
                },
            }
        )
    )


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory, ranks_folder: Path) -> Stock:
    made = Stock(tmp_path_factory.mktemp("bad_input"), ranks_folder)
    case = made.lay_out(())
    write_bytes_dataset(case / "data/bytes")
    text = lines([f"Document {number}: naïve ☃ {'words ' * number}" for number in range(30)])
    write_tar(
        case / "corpus.tar",
        [("a.jsonl.zst", compress(text)), ("b.jsonl.zst", compress(text)), ("readme.md", b"none")],
    )
    (case / "corpus.jsonl").write_bytes(text)
    (case / "corpus.jsonl.zst").write_bytes(compress(text))
    (case / "corpus.jsonl.gz").write_bytes(gzip.compress(text))
    (made.parts / "corpus").mkdir()
    for name in CORPUS:
        shutil.copy(case / name, made.parts / "corpus" / name)
    made.make("tokenize", "--name", "words", "--val-share", "0.2")
    source = case / "source" / "openwebtext2.jsonl.zst.tar"
    source.parent.mkdir()
    shutil.copy(case / "corpus.tar", source)
    source.with_name(f"{source.name}.sha256").write_text(f"{sha256(source)}  {source.name}\n")
    made.make("download", "--data_dir", "got")
    shutil.copytree(
        ADM, case / "adm", ignore=lambda _, names: [name for name in names if name == "ckpt_75.pt"]
    )
    for name in ("eval", "sweep"):
        made.make(name)
    made.make("routers", "--output_dir", "out")
    made.make("resume")
    for part, names in {
        "data": ("data",),
        "source": ("source",),
        "got": ("got",),
        "adm": ("adm",),
        "out": ("out",),
        "exps": ("exps",),
    }.items():
        made.keep(part, *names)
    for name in ("ckpt.pt", "ckpt_4.pt", "summary.json"):
        (case / RUN / name).unlink(missing_ok=True)
    made.keep("stopped", "exps")
    return made


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# the promise


def verdict(use: Use, before: dict[str, bytes], outcome: Outcome, after: dict[str, bytes]) -> list[str]:
    """What of the promise was not kept."""
    wrong = []
    if outcome.code is None:
        wrong.append("it hangs")
    elif outcome.code not in use.codes and not (outcome.code == 2 and use.program == "status.py"):
        wrong.append(f"exit code {outcome.code}")
    if "Traceback" in outcome.out + outcome.err:
        wrong.append("a traceback")
    errors = [line for line in outcome.err.splitlines() if line.startswith(f"{use.program}: error: ")]
    if outcome.code == 2:
        # argparse's programs put their usage before the error
        others = [
            line
            for line in outcome.err.splitlines()
            if line not in errors
            and not re.match(r"usage: | +\[|warning: |note: |budget |step |experiment: ", line)
        ]
        if not errors or others:
            wrong.append("lines on stderr that are no errors" if others else "no error line")
        if len(set(errors)) < len(errors) or any(
            len(line) > 1500 or line.endswith("error: ") for line in errors
        ):
            wrong.append("an error told twice, at great length, or without words")
    for name, raw in before.items():
        may_write = any(fnmatch(name, pattern) for pattern in use.writes) and not (
            outcome.code == 2 and "out/" in name
        )
        if after.get(name) != raw and not may_write:
            wrong.append(f"{name} was {'changed' if name in after else 'deleted'}")
        elif name.endswith("metrics.jsonl") and not after[name].startswith(raw[: raw.rfind(b"\n") + 1]):
            wrong.append(f"rows of {name} were changed")
    return wrong


def expect(
    stock: Stock, use: Use, words: tuple[str, ...] | list[str], case: str, run: Callable[..., Outcome] = fork
) -> None:
    before = contents(stock.folder)
    # it starts workers, which a fork ends in another order; and it starts quickly
    run = start if use.program == "data.tokenize" else run
    outcome = run(use.program, list(words), stock.folder, **{**stock.env, **use.env})
    wrong = verdict(use, before, outcome, contents(stock.folder))
    assert not wrong, (
        f"{use.program}, {case}: {'; '.join(wrong)}\n{outcome.err[-3000:] or outcome.out[-1000:]}"
    )


def generated(fast: int, full: int) -> Any:
    """So many examples, the same ones each time; a failure is told as it is, for it takes long to make one
    smaller.
    """
    return settings(
        max_examples=scale(fast, full),
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],
    )


# bytes


def damage(stock: Stock, name: str, file: str, number: int, run: Callable[..., Outcome] = fork) -> None:
    use, draw = USES[name], random.Random(f"{name} {file} {number}")
    path = stock.lay_out(use.parts) / file
    when = path.stat().st_mtime_ns
    what, raw = damaged(path.read_bytes(), draw)
    path.write_bytes(raw)
    os.utime(path, ns=(when, when))  # damage on a disk does not tell when it happened
    expect(stock, use, use.words, f"{file}: {what}", run)


@pytest.mark.parametrize("number", range(scale(1, 2)))
@pytest.mark.parametrize(("name", "file"), scale(FILES[::2], FILES))
def test_damaged_bytes(stock: Stock, name: str, file: str, number: int) -> None:
    damage(stock, name, file, number)


@pytest.mark.parametrize(
    ("number", "name", "file"),
    [(100 + number, *random.Random(number).choice(FILES)) for number in range(scale(3, 14))],
)
def test_damaged_bytes_as_a_user_starts_it(stock: Stock, name: str, file: str, number: int) -> None:
    damage(stock, name, file, number, start)


@given(
    kind=st.sampled_from((*BINS, "data/words/train.bin")),
    use=st.sampled_from(("eval", "sweep", "generate", "routers", "resume", "inspect")),
    place=st.integers(0, 599),
    token=st.sampled_from((255, 256, 300, 32768, 50256, 50257, 65535)),
    said=st.sampled_from((None, 0, 255, 65535)),
)
@generated(4, 16)
def test_tokens_that_are_none(
    stock: Stock, kind: str, use: str, place: int, token: int, said: int | None
) -> None:
    """meta.json may state another largest token than there is: it is believed where that saves reading the
    file.
    """
    folder = stock.lay_out(USES[use].parts)
    tokens = np.fromfile(folder / kind, dtype="<u2")
    tokens[place % tokens.size] = token
    tokens.tofile(folder / kind)
    meta = json.loads((folder / kind).with_name("meta.json").read_text())
    if said is not None:
        meta["splits"][Path(kind).stem]["largest_token"] = said
    (folder / kind).with_name("meta.json").write_text(json.dumps(meta))
    expect(stock, USES[use], USES[use].words, f"{kind}: token {place} is {token}, meta.json says {said}")


# JSON


@given(data=st.data(), which=st.sampled_from(JSON_FILES))
@generated(16, 70)
def test_changed_json(stock: Stock, data: st.DataObject, which: tuple[str, str]) -> None:
    name, file = which
    path = stock.lay_out(USES[name].parts) / file
    what, text = data.draw((line_texts if file.endswith(".jsonl") else json_texts)(path.read_text()))
    path.write_text(text, errors="surrogatepass")
    expect(stock, USES[name], USES[name].words, f"{file}: {what}")


# --config and flags

SWITCHED_OFF = ("selftest_resume", "compile", "wandb")  # what they start takes long, and has tests of its own
PINNED = (
    "iterations",
    "n_layer",
    "n_embd",
    "n_head",
    "n_repeat",
    "sequence_length",
    "batch_size",
    "acc_steps",
    "vocab_size",
    "data_dir",
    "dataset",
    "results_base_folder",
    "eval_batches",
    "device",
)  # the command line wins, so that a case is small


@given(data=st.data(), use=st.sampled_from(("resume", "eval", "generate")))
@generated(8, 32)
def test_config_files(stock: Stock, data: st.DataObject, use: str) -> None:
    folder = stock.lay_out((*USES[use].parts, "data"))
    content: Any = (
        {name: value for name, value in SETTINGS.items() if name not in PINNED} if use == "resume" else {}
    )
    for _ in range(data.draw(st.integers(1, 3))):
        name = data.draw(st.sampled_from(sorted(FLAGS)))
        value = data.draw(ANY_JSON | st.sampled_from([*FLAGS[name].choices] or [1]))
        content[name] = False if name in SWITCHED_OFF else value
    what = repr(content)
    if data.draw(st.integers(0, 3)) == 0:
        content = data.draw(ANY_JSON)
    text = json.dumps(content)
    if data.draw(st.integers(0, 3)) == 0:
        text = text[: data.draw(st.integers(0, len(text)))]
    (folder / "config.json").write_text(text, errors="surrogatepass")
    pins = (
        [word for name in PINNED for word in (f"--{name}", str(SETTINGS[name]))]
        if use == "resume"
        else USES[use].words
    )
    expect(stock, USES[use], [*pins, "--config", "config.json"], f"--config {text[:300]} ({what[:300]})")


GARBAGE = (
    "",
    " ",
    "-1",
    "1e999",
    "nan",
    "None",
    "x",
    "[]",
    "{}",
    "☃",
    "x" * 300,
    "\udcff",
    "--",
    "0x10",
    "1_0",
    "-",
    "%s",
    "a\nb",
    "../up",
)


@pytest.mark.parametrize("number", range(scale(1, 2)))
@pytest.mark.parametrize("name", scale(TYPED[::2], TYPED))
def test_flags_that_are_wrong(stock: Stock, name: str, number: int) -> None:
    use, draw = USES[name], random.Random(f"{name} {number}")
    stock.lay_out(use.parts)
    words = list(use.words)
    known = sorted(word for word in words if word.startswith("--")) or ["--json"]
    for _ in range(draw.choice((1, 1, 2))):
        flag = draw.choice(
            (draw.choice(known), f"--{draw.choice(sorted(FLAGS))}", "--nonsense", "--output-dir", "-q")
        )
        if flag.removeprefix("--") not in SWITCHED_OFF:
            words[draw.randrange(len(words) + 1) : 0] = [flag, draw.choice(GARBAGE)]
    if draw.random() < 0.3:
        words.pop(draw.randrange(len(words)))
    # flags may name other places to write to, below the case's folder
    expect(stock, use, words, f"words {words}")


# checkpoints


@pytest.mark.parametrize("number", range(scale(2, 6)))
@pytest.mark.parametrize(("name", "file"), scale(CHECKPOINTS[::2], CHECKPOINTS))
def test_changed_checkpoint(stock: Stock, name: str, file: str, number: int) -> None:
    use, draw = USES[name], random.Random(f"{name} {number} content")
    path = stock.lay_out(use.parts) / file
    what, state = changed_state(stock.state(file), draw)
    if number % 2:
        what, args = changed_settings(stock.state(file)["args"], draw, LARGE)
        state = {**stock.state(file), "args": args}
    save_checkpoint(path, state)
    expect(stock, use, use.words, f"{file}: {what}")


# arrays and archives


@pytest.mark.parametrize("what", scale(["objects", "no token"], list(ARRAYS)))
def test_other_arrays(stock: Stock, what: str) -> None:
    path = stock.lay_out(USES["fig5"].parts) / "out/router_weights.npz"
    content = ARRAYS[what]
    np.savez(path, allow_pickle=True, **(content if isinstance(content, dict) else {"weights": content}))
    expect(stock, USES["fig5"], USES["fig5"].words, f"router_weights.npz: {what}")


def members(draw: random.Random) -> Iterator[tuple[str, tarfile.TarInfo, bytes]]:
    """Members of a tar, most of them not as they should be."""
    good = lines(["a document", "another one", "a third one, for both splits"])
    odd_lines = [
        b"not JSON",
        b"[]",
        b"3",
        b"null",
        b'{"text": 3}',
        b'{"other": "x"}',
        b'{"text": "\\ud800"}',
        b"\xff\xfe",
        b"",
        b"[" * 5000,
        b'{"text": "x"',
        b'{"text": "' + b"x" * 100_000 + b'"}',
        b'{"text": ""}',
        b'{"text": NaN}',
        b'{"text": "a", "text": null}',
    ]
    for number in range(draw.randrange(1, 4)):
        kind = draw.choice(("lines", "lines", "name", "link", "folder", "plain", "cut", "twice", "fifo"))
        info, content, what = tarfile.TarInfo(f"{number}.jsonl.zst"), compress(good), kind
        if kind == "lines":
            bad = draw.sample(odd_lines, draw.randrange(1, 3))
            content, what = compress(good + b"\n".join(bad) + b"\n"), f"lines {[line[:20] for line in bad]}"
        elif kind == "name":
            info.name = what = draw.choice(
                (
                    "../up.jsonl",
                    "/root.jsonl",
                    "x.exe",
                    "ü☃.jsonl.zst",
                    "a" * 90 + ".jsonl.zst",
                    ".jsonl.zst",
                    "x.jsonl",
                    "x.txt",
                )
            )
        elif kind in ("link", "folder", "fifo"):
            info.type, content = (
                {
                    "link": tarfile.SYMTYPE,
                    "folder": tarfile.DIRTYPE,
                    "fifo": tarfile.FIFOTYPE,
                }[kind],
                b"",
            )
            info.linkname = "/etc/hostname" if kind == "link" else ""
        elif kind == "plain":
            content = good
        elif kind == "cut":
            content = content[: draw.randrange(len(content))]
        elif kind == "twice":
            content += draw.choice((content, b"\0" * 10, b"tail"))
        info.size = len(content)
        yield what, info, content


@pytest.mark.parametrize("number", range(scale(3, 10)))
def test_odd_archives(stock: Stock, number: int) -> None:
    draw = random.Random(f"archive {number}")
    use = USES["tokenize" if number % 2 else "tokenize characters"]
    path = stock.lay_out(use.parts) / "corpus.tar"
    whats = []
    with tarfile.open(
        path, "w", format=draw.choice((tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT))
    ) as tar:
        for what, info, content in members(draw):
            whats.append(what)
            tar.addfile(info, io.BytesIO(content))
    expect(stock, use, use.words, f"corpus.tar with {whats}")


# job scripts


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A job script knows the repository by its own place, and makes its folders there."""
    target = tmp_path_factory.mktemp("clone") / "repository"
    copy_sources(target)
    return target


JOBS = sorted(path.parent.name for path in (ROOT / "iridis").glob("*/job.sh"))
ODD_WORDS = [
    "--nonsense",
    "--chain",
    "--chain=0",
    "--after",
    "x y",
    "--name",
    "",
    "-x",
    "--local",
    "--checkpoint",
    "nowhere",
    "--where",
    "--state",
    "'",
    "$(touch owned)",
    "; touch owned",
    "☃",
    "--chain -1",
    "--lr",
    "fast",
]


@pytest.mark.parametrize("number", range(scale(3, 14)))
def test_job_scripts(clone: Path, stock: Stock, number: int) -> None:
    """Dry runs on a machine that takes itself for one without SLURM."""
    draw = random.Random(f"job {number}")
    job = JOBS[number % len(JOBS)]
    chosen = []
    for word in draw.sample(ODD_WORDS, draw.randrange(1, 4)):
        chosen += [word, draw.choice(GARBAGE)] if draw.random() < 0.3 else [word]
    words = [
        "--dry-run",
        "--local",
        *chosen,
        *draw.choice(([], ["--", "--lr", draw.choice(GARBAGE)], ["--", draw.choice(GARBAGE)])),
    ]
    before = contents(clone)
    env = {
        "SCRATCH_DIR": str(stock.parts / "scratch"),
        "VENV_DIR": sys.prefix,
        "USE_CONDA": "no",
        "WANDB": "0",
        "PYTHONDONTWRITEBYTECODE": "1",
        "DATA_DIR": str(stock.parts / "data" / "data"),
        "DATASET": "bytes",
        **stock.env,
    }
    outcome = wait_for([str(shutil.which("bash")), f"iridis/{job}/job.sh", *words], clone, **env)
    wrong = [] if outcome.code in (0, 2) else [f"exit code {outcome.code}"]
    wrong += ["a traceback"] if "Traceback" in outcome.out + outcome.err else []
    if outcome.code == 2 and not re.search(r"^(\S+: )*error: .", outcome.err, re.MULTILINE):
        wrong.append("no error line")
    if contents(clone) != before:
        wrong.append(f"files were made: {contents(clone).keys() - before.keys()}")
    assert not wrong, f"iridis/{job}/job.sh {words}: {wrong}\n{outcome.err[-2000:]}"


def test_the_promise_can_be_broken() -> None:
    """The judge itself: each kind of fault is seen."""
    use, files = USES["eval"], {"adm/ckpt.pt": b"x"}
    assert verdict(use, files, Outcome(0, "", ""), files) == []
    assert verdict(use, files, Outcome(2, "", "eval.py: error: no\n"), files) == []
    for code, err, after in [
        (None, "", files),
        (1, "", files),
        (2, "", files),
        (2, "eval.py: error: no\nwhat\n", files),
        (2, "eval.py: error: no\n" * 2, files),
        (0, "Traceback", files),
        (0, "", {}),
        (0, "", {"adm/ckpt.pt": b"y"}),
    ]:
        assert verdict(use, files, Outcome(code, "", err), after), (code, err, after)
