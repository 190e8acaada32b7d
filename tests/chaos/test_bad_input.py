"""Bad input to every program, in every kind of file that it reads: exit code 2 and a line for each problem,
or success; nothing is lost.

Cases are drawn with fixed seeds.
"""

from __future__ import annotations

import io
import json
import os
import random
import re
import shutil
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from config.flags import FLAGS
from optim.checkpoint import save_checkpoint
from tests.chaos import scale
from tests.chaos.forks import Outcome, fork, start, wait_for
from tests.chaos.mutations import ANY_JSON, changed_settings, changed_state, damaged, json_texts, line_texts
from tests.chaos.stock import BINS, SETTINGS, USES, Stock, contents, expect, generated, make_stock, verdict
from tests.corpora import compress, lines
from tests.programs import ROOT, copy_sources

pytestmark = pytest.mark.slow
# more of these asks for more memory, not for less sense
LARGE = frozenset(("n_layer", "n_embd", "n_repeat", "vocab_size", "sequence_length"))
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


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory, ranks_folder: Path) -> Stock:
    return make_stock(tmp_path_factory.mktemp("bad_input"), ranks_folder)


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
