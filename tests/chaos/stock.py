"""Every program with good input of its own, real output of the others, and the promise about bad input.

All files of a case lie in one folder, in which the program runs.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, settings

from optim.checkpoint import load_checkpoint
from tests.chaos import scale
from tests.chaos.forks import Outcome, fork, start
from tests.corpora import compress, lines, write_tar
from tests.programs import PEER, STOPPED, TINY, flags

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


def make_stock(base: Path, ranks: Path) -> Stock:
    """Run the programs on good input, each on what the ones before it wrote."""
    made = Stock(base, ranks)
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
