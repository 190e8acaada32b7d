"""Attacks that must fail: files that run code, archives and names that lead elsewhere, words that a shell
would run, JSON that fills the memory, secrets that get about. Each kind first shows that its payload works
where nothing stops it.
"""

from __future__ import annotations

import io
import json
import os
import pickle
import shutil
import struct
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import data.inspect
import data.tokenize
import eval as evaluation
import generate
import get_ppl_per_mac
import get_router_weights
import main as training
import models.export
import plot_fig4
import plot_fig5
import report.__main__
import status
from config import guarded
from iridis import chain, preflight
from tests.chaos import FULL, scale
from tests.programs import PEER, ROOT, environment, flags

pytestmark = pytest.mark.slow

# trains within a second
QUICK: dict[str, Any] = {
    "iterations": 1,
    "n_layer": 3,
    "n_embd": 8,
    "n_head": 2,
    "acc_steps": 1,
    "batch_size": 64,
}
MARK = "attacked"  # the name of the file that a payload makes where it works
GIB = 1 << 30
Program = Callable[[list[str]], int]


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


@pytest.fixture
def call(capfd: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs a program's main in this process: what it does with its input is the same, and torch is loaded
    once.
    """

    def run(program: Program, *words: object) -> Outcome:
        capfd.readouterr()
        try:
            code = program([str(word) for word in words])
        except SystemExit as end:
            code = int(end.code or 0)
        return Outcome(code, *capfd.readouterr())

    return run


def check_job(words: list[str]) -> int:
    """As `python -m iridis.preflight`."""
    return guarded("job", lambda: preflight.main(words))


def one_line(outcome: Outcome, word: str = "") -> str:
    """What a refusal says; notes about the run may stand before it.

    A line break of a word that it quotes is one there too.
    """
    assert outcome.code == 2, outcome
    lines = [line for line in outcome.err.splitlines() if "error: " in line]
    assert 1 <= len(lines) <= 1 + word.count("\n") and "Traceback" not in outcome.err, outcome.err
    return lines[0]


def tree(folder: Path, *, without: Path | None = None) -> set[str]:
    return {str(path) for path in folder.rglob("*") if without is None or not path.is_relative_to(without)}


# files that run code


class Payload:
    """Makes a file when it is unpickled."""

    def __init__(self, function: Callable[..., Any], *words: Any) -> None:
        self.call = function, words

    def __reduce__(self) -> Any:
        return self.call


def payloads(mark: Path) -> dict[str, Any]:
    return {
        "method": Payload(Path.touch, mark),
        "shell": Payload(os.system, f"touch '{mark}'"),
        "eval": Payload(eval, f"open({str(mark)!r}, 'w')"),
        "process": Payload(subprocess.call, ["touch", str(mark)]),
    }


def save_hostile(path: Path, kind: str, where: str, zipped: bool = True) -> Path:
    """An otherwise good checkpoint, so that nothing but the payload is a reason to refuse it.

    Returns the mark.
    """
    mark = path.parent / MARK
    state = torch.load(next(PEER.glob("exps/*/*/official_adm/ckpt.pt")), weights_only=False)
    payload = payloads(mark)[kind]
    path.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(
        next(PEER.glob("exps/*/*/official_adm/summary.json")), path.parent / "summary_of_the_authors.json"
    )
    torch.save(
        {**state, where: payload if where == "more" else {"x": payload}},
        path,
        _use_new_zipfile_serialization=zipped,
    )
    return mark


HOSTILE = scale(
    [("method", "more", True), ("shell", "model", False)],
    [
        (kind, where, zipped)
        for kind in ("method", "shell", "eval", "process")
        for where in ("more", "model", "args", "optimizer")
        for zipped in (True, False)
    ],
)


@pytest.mark.parametrize(("kind", "where", "zipped"), HOSTILE)
def test_the_hostile_checkpoints_attack_a_plain_load(
    tmp_path: Path, kind: str, where: str, zipped: bool
) -> None:
    mark = save_hostile(tmp_path / "ckpt.pt", kind, where, zipped)
    torch.load(tmp_path / "ckpt.pt", weights_only=False)
    assert mark.exists()


READERS: dict[str, tuple[Program, Callable[[Path], list[object]]]] = {
    "eval": (
        evaluation.main,
        lambda path: ["--checkpoint", path, "--data_dir", PEER / "datasets", "--device", "cpu"],
    ),
    "eval of a folder": (
        evaluation.main,
        lambda path: ["--checkpoint", path.parent, "--data_dir", PEER / "datasets", "--device", "cpu"],
    ),
    "generate": (generate.main, lambda path: ["--checkpoint", path, "--prompt", "x", "--device", "cpu"]),
    "sweep": (
        get_ppl_per_mac.main,
        lambda path: ["--checkpoint", path, "--data_dir", PEER / "datasets", "--device", "cpu"],
    ),
    "router": (
        get_router_weights.main,
        lambda path: ["--checkpoint", path, "--data_dir", PEER / "datasets", "--device", "cpu"],
    ),
    "export": (models.export.main, lambda path: [path, path.parent / "exported"]),
    "main, given": (training.main, lambda path: flags(path.parent / "results", use_pretrained=path)),
    "main, resumed": (training.main, lambda path: flags(path.parents[3])),
}


@pytest.mark.parametrize(("kind", "where", "zipped"), HOSTILE)
@pytest.mark.parametrize("reader", READERS)
def test_a_payload_in_a_checkpoint_is_refused_and_does_nothing(
    tmp_path: Path, call: Any, reader: str, kind: str, where: str, zipped: bool
) -> None:
    program, words = READERS[reader]
    folder = tmp_path / "openwebtext2" / models.variants.ALIASES["adm"] / "run"
    path = folder / ("ckpt_7.pt" if reader == "main, resumed" else "ckpt.pt")
    mark = save_hostile(path, kind, where, zipped)
    assert path.name in one_line(call(program, *words(path)))
    assert not mark.exists()


@pytest.mark.parametrize(
    "reader",
    scale(["eval.py"], ["main.py", "eval.py", "generate.py", "get_ppl_per_mac.py", "get_router_weights.py"]),
)
def test_a_payload_does_nothing_in_a_process_of_its_own(tmp_path: Path, reader: str) -> None:
    mark = save_hostile(tmp_path / "ckpt.pt", "shell", "more")
    words = (
        flags(tmp_path / "results", use_pretrained=tmp_path / "ckpt.pt")
        if reader == "main.py"
        else ["--checkpoint", str(tmp_path)]
    )
    outcome = subprocess.run(
        [sys.executable, reader, *words],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    one_line(Outcome(outcome.returncode, outcome.stdout, outcome.stderr))
    assert not mark.exists()


def array_bytes(header: str) -> bytes:
    """An .npy with a header of one's own."""
    text = header.encode() + b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(64)


def hostile_arrays(mark: Path) -> dict[str, bytes]:
    objects = io.BytesIO()
    np.save(objects, np.array([[Payload(Path.touch, mark)]], dtype=object), allow_pickle=True)
    return {
        "objects": objects.getvalue(),
        "pickle": pickle.dumps(Payload(Path.touch, mark)),
        "header that is code": array_bytes(
            f"{{'descr': __import__('os').system('touch {mark}'), 'fortran_order': False, 'shape': (1,), }}"
        ),
        "more than any memory": array_bytes(
            "{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000, 100), }"
        ),
        "more than any number": array_bytes(
            "{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775807, 9223372036854775807), }"
        ),
        "less than nothing": array_bytes("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 4), }"),
        "nested header": array_bytes("-" * 9000 + "1"),
        "endless header": array_bytes("(" * 9000),
    }


@pytest.mark.parametrize("kind", ["objects", "pickle"])
def test_the_hostile_arrays_attack_a_plain_load(tmp_path: Path, kind: str) -> None:
    (tmp_path / "x.npy").write_bytes(hostile_arrays(tmp_path / MARK)[kind])
    np.load(tmp_path / "x.npy", allow_pickle=True)
    assert (tmp_path / MARK).exists()


@pytest.mark.parametrize("ending", ["npy", "npz"])
@pytest.mark.parametrize("kind", hostile_arrays(Path(MARK)))
def test_a_hostile_array_is_refused_by_the_figure_of_routers(
    tmp_path: Path, call: Any, kind: str, ending: str
) -> None:
    path = tmp_path / f"router_weights_raw.{ending}"
    content = hostile_arrays(tmp_path / MARK)[kind]
    if ending == "npz":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("weights.npy", content)
    else:
        path.write_bytes(content)
    assert path.name in one_line(call(plot_fig5.main, path, "--output_dir", tmp_path / "out"))
    assert not (tmp_path / MARK).exists()


@pytest.mark.parametrize("kind", ["objects", "pickle"])
@pytest.mark.parametrize("program", ["train", "inspect", "tokenize"])
def test_a_payload_in_place_of_tokens_or_text_does_nothing(
    tmp_path: Path, call: Any, program: str, kind: str
) -> None:
    folder = tmp_path / "data" / "mine"
    folder.mkdir(parents=True)
    content = hostile_arrays(tmp_path / MARK)[kind]
    for name in ("train.bin", "val.bin", "raw.npy", "raw.txt"):
        (folder / name).write_bytes(content + b"\0" * (len(content) % 2))
    words: dict[str, tuple[Program, list[object]]] = {
        "train": (
            training.main,
            flags(tmp_path / "results", dataset="mine", data_dir=tmp_path / "data", vocab_size=256),
        ),
        "inspect": (data.inspect.main, [folder]),
        "tokenize": (
            data.tokenize.main,
            ["--name", "new-char", "--data_dir", tmp_path / "data", "--input", folder / "raw.npy"],
        ),
    }
    outcome = call(words[program][0], *words[program][1])
    assert outcome.code != 0 and "Traceback" not in outcome.err, outcome
    assert not (tmp_path / MARK).exists()


# archives that lead elsewhere


TEXT = b'{"text": "a document of some length"}\n' * 20
SECRET = "§ stands outside of the archive, and this sign in no text of it"


def member(
    name: str, kind: bytes = tarfile.REGTYPE, target: str = "", content: bytes = TEXT
) -> tuple[tarfile.TarInfo, bytes]:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.size = kind, target, len(content) if kind == tarfile.REGTYPE else 0
    return entry, content


def hostile_members(outside: Path) -> dict[str, list[tuple[tarfile.TarInfo, bytes]]]:
    secret = str(outside / "secret.jsonl")
    return {
        "above": [member("../outside/landed.jsonl")],
        "above, later": [member("a/b/../../../outside/landed.jsonl")],
        "absolute": [member(str(outside / "landed.jsonl"))],
        "two slashes": [member("/" + str(outside / "landed.jsonl"))],
        "long name": [member("../" * 60 + "x" * 80 + "/landed.jsonl")],
        "symlink to a file": [member("link.jsonl", tarfile.SYMTYPE, secret)],
        "symlink to a folder": [member("link", tarfile.SYMTYPE, str(outside)), member("link/landed.jsonl")],
        "hardlink": [member("link.jsonl", tarfile.LNKTYPE, secret)],
        "hardlink above": [member("link.jsonl", tarfile.LNKTYPE, "../outside/secret.jsonl")],
        "character device": [member("null.jsonl", tarfile.CHRTYPE)],
        "block device": [member("disk.jsonl", tarfile.BLKTYPE)],
        "fifo": [member("fifo.jsonl", tarfile.FIFOTYPE)],
        "folder above": [member("../outside/made", tarfile.DIRTYPE)],
    }


ARCHIVES = list(hostile_members(Path("/x")))


def pack(path: Path, members: list[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.GNU_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for entry, content in members:
            tar.addfile(entry, io.BytesIO(content) if entry.size else None)
    return path


def characters(folder: Path) -> str:
    """Of which a dataset is made, character by character; nothing where none was made, or of longer
    tokens.
    """
    path = folder / "meta.json"
    return str(json.loads(path.read_text()).get("characters", "")) if path.exists() else ""


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    folder = tmp_path / "outside"
    folder.mkdir()
    (folder / "secret.jsonl").write_text(json.dumps({"text": SECRET}, ensure_ascii=False) + "\n")
    return folder


@pytest.mark.parametrize("kind", ["above", "absolute", "symlink to a folder"])
def test_the_hostile_archives_land_outside_where_they_are_unpacked(
    tmp_path: Path, outside: Path, kind: str
) -> None:
    (tmp_path / "in").mkdir()
    with tarfile.open(pack(tmp_path / "x.tar", hostile_members(outside)[kind])) as tar:
        tar.extractall(tmp_path / "in", filter="fully_trusted")
    assert (outside / "landed.jsonl").exists()


@pytest.mark.parametrize("max_bad", ["0", "9"])
@pytest.mark.parametrize(
    ("tokenizer", "form"),
    scale(
        [("char", tarfile.GNU_FORMAT)],
        [("char", tarfile.GNU_FORMAT), ("char", tarfile.PAX_FORMAT), ("gpt2", tarfile.GNU_FORMAT)],
    ),
)
@pytest.mark.parametrize("kind", ARCHIVES)
def test_a_hostile_archive_leaves_nothing_outside_and_takes_nothing_from_there(
    tmp_path: Path,
    outside: Path,
    call: Any,
    bpe_cache: Path,
    kind: str,
    tokenizer: str,
    form: int,
    max_bad: str,
) -> None:
    archive = pack(tmp_path / "corpus.tar", [member("good.jsonl"), *hostile_members(outside)[kind]], form)
    before = tree(tmp_path)
    outcome = call(
        data.tokenize.main,
        "--name",
        "mine",
        "--data_dir",
        tmp_path / "data",
        "--input",
        archive,
        "--tokenizer",
        tokenizer,
        "--max-bad",
        max_bad,
        "--workers",
        1,
    )
    assert outcome.code in (0, 2) and "Traceback" not in outcome.err, outcome
    assert tree(tmp_path, without=tmp_path / "data") == before
    assert not (set(SECRET) - set(TEXT.decode())) & set(characters(tmp_path / "data" / "mine"))


@pytest.mark.parametrize("size", [-512, -1, 8**11 - 1, 1 << 62])
def test_a_member_whose_size_is_a_lie_ends_in_a_line(tmp_path: Path, call: Any, size: int) -> None:
    archive = pack(tmp_path / "corpus.tar", [member("good.jsonl"), member("liar.jsonl")])
    raw = bytearray(archive.read_bytes())
    at = raw.index(b"liar.jsonl")
    raw[at + 124 : at + 136] = (
        (size % (1 << 96)).to_bytes(12, "big") if not 0 <= size < 8**11 else b"%011o\0" % size
    )
    raw[at + 124] |= 0x80 if not 0 <= size < 8**11 else 0
    raw[at + 148 : at + 156] = b" " * 8
    raw[at + 148 : at + 156] = b"%06o\0 " % sum(raw[at : at + 512])
    archive.write_bytes(raw)
    # in a process of its own: a negative size has led tarfile in circles
    outcome = subprocess.run(
        [
            sys.executable,
            "-m",
            "data.tokenize",
            "--name",
            "mine-char",
            "--data_dir",
            str(tmp_path / "data"),
            "--input",
            str(archive),
        ],
        cwd=ROOT,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert outcome.returncode == 2 and "Traceback" not in outcome.stderr, outcome


# words that a shell would run


def hostile_words(mark: str) -> dict[str, str]:
    return {
        "substitution": f"$(touch {mark})",
        "backquotes": f"`touch {mark}`",
        "semicolon": f";touch {mark};",
        "quote": f"';touch {mark};'",
        "two quotes": f'";touch {mark};"',
        "pipe": f"a|touch {mark}",
        "and": f"a&&touch {mark}&",
        "line": f"a\ntouch {mark}\n",
        "index": f"PATH[$(touch {mark})]",
        "spaces": "a b  c",
        "dash": "-rf",
        "option": "--help",
        "glob": "*",
        "braces": "{a,b}",
        "home": "~",
        "percent": "%s%n%j",
        "backslash": "a\\",
        "variable": "$HOME$$",
        "alphabets": "é漢字🙂",
    }


WORDS = hostile_words(MARK)
RUNS = ("substitution", "backquotes", "semicolon", "pipe", "and", "line")


def landed() -> list[Path]:
    """Files of the mark's name in each folder that a program or script of ours works in."""
    return [
        path
        for folder in (ROOT, *(path for path in (ROOT / "iridis").iterdir() if path.is_dir()))
        if (path := folder / MARK).exists()
    ]


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    assert not landed()
    yield
    for path in landed():
        path.unlink()


@pytest.mark.parametrize("kind", RUNS)
def test_the_hostile_words_run_where_a_shell_reads_them(tmp_path: Path, kind: str) -> None:
    subprocess.run(
        ["bash", "-c", f"echo {WORDS[kind]}"], cwd=tmp_path, check=False, capture_output=True, timeout=20
    )
    assert (tmp_path / MARK).exists()


def test_a_hostile_index_runs_where_bash_calculates(tmp_path: Path) -> None:
    environ = {**os.environ, "NUMBER": WORDS["index"]}
    subprocess.run(
        ["bash", "-c", "((NUMBER))"], cwd=tmp_path, env=environ, check=False, capture_output=True, timeout=20
    )
    assert (tmp_path / MARK).exists()


def works_or_is_refused(outcome: Outcome, word: str = "") -> None:
    assert outcome.code in (0, 2) and "Traceback" not in outcome.err, outcome
    if outcome.code == 2:
        one_line(outcome, word)
    assert not landed()


@pytest.mark.parametrize("kind", scale(["substitution", "quote", "line", "dash"], list(WORDS)))
@pytest.mark.parametrize(
    "flag", ["exp_name", "run_prefix", "results_base_folder", "dataset", "stop_file", "wandb_project"]
)
def test_hostile_words_to_the_training_are_names_or_refused(
    tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch, flag: str, kind: str
) -> None:
    word = WORDS[kind]
    monkeypatch.chdir(tmp_path)
    if flag == "dataset" and "\n" not in word:
        shutil.copytree(PEER / "datasets" / "openwebtext2", tmp_path / "data" / word)
    changes = {
        "results_base_folder": None,
        "data_dir": tmp_path / "data" if flag == "dataset" else PEER / "datasets",
        "exp_name": None if flag == "run_prefix" else "run",
        flag: None,
    }
    given = [f"--{flag}={word}"] + (
        [] if flag == "results_base_folder" else ["--results_base_folder", str(tmp_path / "results")]
    )
    works_or_is_refused(call(training.main, *flags(tmp_path, **changes, **QUICK), *given))
    assert not (tmp_path / MARK).exists()


@pytest.mark.parametrize("kind", scale(["substitution", "quote", "line", "dash"], list(WORDS)))
@pytest.mark.parametrize("flag", ["name", "input", "data_dir", "text-key"])
def test_hostile_words_to_the_tokeniser_are_names_or_refused(
    tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch, flag: str, kind: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("good.txt").write_text("some text\n" * 20)
    Path(WORDS[kind]).write_text("some text\n" * 20)
    settings = {
        "name": "mine",
        "input": "good.txt",
        "data_dir": "data",
        "text-key": "text",
        "tokenizer": "char",
        flag: WORDS[kind],
    }
    works_or_is_refused(
        call(data.tokenize.main, *(f"--{name}={value}" for name, value in settings.items())), WORDS[kind]
    )
    assert not (tmp_path / MARK).exists()


def job(package: str, *words: str, **env: str) -> Outcome:
    site = {
        "VENV_DIR": sys.prefix,
        "USE_CONDA": "no",
        "DATASET": "openwebtext2",
        "DATA_DIR": str(PEER / "datasets"),
        "N_GPUS": "0",
        "CPUS": "1",
        "WANDB": "0",
    }
    outcome = subprocess.run(
        ["bash", f"iridis/{package}/job.sh", *words],
        cwd=ROOT,
        env=environment(**{**site, **env}),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    return Outcome(outcome.returncode, outcome.stdout, outcome.stderr)


SMALL = [
    word
    for word in flags(
        Path("x"),
        dataset=None,
        data_dir=None,
        results_base_folder=None,
        exp_name=None,
        iterations=2,
        model=None,
    )
    if word != "x"
]


@pytest.mark.parametrize("setting", scale(["N_GPUS", "CPUS"], ["N_GPUS", "N_NODES", "CPUS"]))
@pytest.mark.parametrize("kind", scale(["index", "substitution"], list(WORDS)))
def test_a_number_of_a_job_that_is_none_is_refused_before_bash_calculates(
    tmp_path: Path, setting: str, kind: str
) -> None:
    assert setting in one_line(
        job(
            "base-train",
            "base",
            "12",
            "--local",
            "--dry-run",
            SCRATCH_DIR=str(tmp_path),
            **{setting: WORDS[kind]},
        )
    )
    assert not landed()


SETTINGS = (
    "DATASET",
    "DATA_DIR",
    "RESULTS_DIR",
    "SCRATCH_DIR",
    "TEAM_DIR",
    "TIKTOKEN_CACHE_DIR",
    "HF_HOME",
    "WANDB_DIR",
    "WANDB_MODE",
    "WANDB_PROJECT",
    "GPU_PARTITION",
    "PARTITION",
    "TIME_LIMIT",
    "MEMORY",
    "SBATCH_OPTIONS",
    "CHAIN_BY",
    "HEALTH_CHECK",
    "NOTIFY_EMAIL",
    "ITERATIONS",
    "BATCH_SIZE",
    "USE_CONDA",
)


@pytest.mark.parametrize(
    ("setting", "kind"),
    scale(
        [("TEAM_DIR", "two quotes")],
        [
            (setting, kind)
            for number, setting in enumerate(SETTINGS)
            for kind in [*RUNS, "index", "dash", "glob"][number % 9 :: 9]
        ],
    ),
)
def test_hostile_settings_of_a_job_run_nothing(tmp_path: Path, setting: str, kind: str) -> None:
    works_or_is_refused(
        job(
            "base-train",
            "base",
            "12",
            "--local",
            "--dry-run",
            "--",
            *SMALL,
            **{"SCRATCH_DIR": str(tmp_path), setting: WORDS[kind]},
        )
    )


@pytest.mark.parametrize(
    ("package", "option"),
    scale(
        [("eval-lncot", "--checkpoint")],
        [("base-train", option) for option in ("--name", "--after", "--chain", "MODEL", "--")]
        + [
            ("eval-lncot", "--checkpoint"),
            ("eval-lncot", "--name"),
            ("extract-tokenize-dataset", "--input"),
            ("download-dataset", "--source"),
        ],
    ),
)
@pytest.mark.parametrize("kind", scale(["substitution"], ["substitution", "quote", "line"]))
def test_hostile_options_of_a_job_run_nothing(tmp_path: Path, package: str, option: str, kind: str) -> None:
    words = {
        "MODEL": [WORDS[kind], "12"],
        "--": ["base", "12", "--", *SMALL, f"--exp_name={WORDS[kind]}"],
    }.get(option)
    if words is None:
        model = ["base", "12"] if package == "base-train" else []
        words = [*model, option, WORDS[kind], *(["--", *SMALL] if model else [])]
    works_or_is_refused(job(package, "--local", "--dry-run", *words, SCRATCH_DIR=str(tmp_path)))


@pytest.mark.parametrize("kind", WORDS)
def test_the_script_for_slurm_gives_hostile_words_back_as_they_were(tmp_path: Path, kind: str) -> None:
    word = WORDS[kind]
    script = (
        'source iridis/lib.sh; JOB_SCRIPT="$1/print"; RUN_DIR="$2" MAX_JOBS="" NAME="$2" CHECKPOINTS=("$2")'
        ' WORDS=("$2") FLAGS=("$2");segment_words; printf "#!/usr/bin/env bash\\nexec %s\\n" "$(quoted'
        ' "${SEGMENT[@]}")" >"$1/script"; bash "$1/script"'
    )
    (tmp_path / "print").write_text("printf '%s\\0' \"$@\"\n")
    outcome = subprocess.run(
        ["bash", "-c", script, "bash", str(tmp_path), word],
        cwd=ROOT,
        env=environment(SCRATCH_DIR=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )
    assert outcome.stdout.split("\0") == [
        "--segment",
        word,
        "--name",
        word,
        "--checkpoint",
        word,
        word,
        "--",
        word,
        "",
    ], outcome.stderr
    assert not landed()


# names that lead elsewhere


AWAY = {
    "above": "../../x",
    "absolute": "/x-away",
    "later": "a/../../../../x",
    "up": "..",
    "here": ".",
    "nothing": "",
    "slash": "/",
    "end": "a/..",
    "slashes": "a//b",
    "nul": "a\0b",
    "nul above": "../\0",
    "long": "x" * 5000,
    "deep": "a/" * 2499 + "b",
    "surrogate": "\udc80",
    "space": " ",
}


@pytest.mark.parametrize("by_config", [False, True], ids=["flag", "config"])
@pytest.mark.parametrize("kind", AWAY)
@pytest.mark.parametrize("flag", ["exp_name", "run_prefix", "dataset"])
def test_no_name_leads_out_of_the_results_folder(
    tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch, flag: str, kind: str, by_config: bool
) -> None:
    here, results = tmp_path / "a" / "b" / "here", tmp_path / "a" / "b" / "results"
    here.mkdir(parents=True)
    monkeypatch.chdir(here)  # so that a relative way out is within the test's folder
    config = tmp_path / "config.json"
    config.write_text(json.dumps({flag: AWAY[kind]}))
    given = ["--config", str(config)] if by_config else [f"--{flag}={AWAY[kind]}"]
    changes = {"exp_name": None if flag == "run_prefix" else "run", flag: None}
    before = tree(tmp_path), set(os.listdir("/"))
    outcome = call(training.main, *flags(results, **changes, **QUICK), *given)
    works_or_is_refused(outcome)
    assert (tree(tmp_path, without=results), set(os.listdir("/"))) == before


@pytest.mark.parametrize("kind", AWAY)
def test_no_name_of_a_dataset_ends_the_tokeniser_in_a_traceback(
    tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    if kind in ("absolute", "slash") or "\0" in AWAY[kind]:
        pytest.skip("a path is taken as it is, and no argument holds a NUL")
    (tmp_path / "a" / "b" / "c").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b" / "c")
    Path("good.txt").write_text("some text\n" * 20)
    works_or_is_refused(
        call(
            data.tokenize.main,
            f"--name={AWAY[kind]}",
            "--input",
            "good.txt",
            "--data_dir",
            "data",
            "--tokenizer",
            "char",
        )
    )


# JSON that fills the memory or the stack


DEPTH = 100_000


def write_huge(path: Path) -> None:
    with open(path, "wb") as file:  # a gigabyte that takes no room on the disk
        file.write(b'{"a": [')
        file.truncate(GIB)


def write_deep(path: Path) -> None:
    path.write_text("[" * DEPTH + "]" * DEPTH + "\n")


def write_deep_object(path: Path) -> None:
    path.write_text('{"args":' * DEPTH + "1" + "}" * DEPTH + "\n")


BOMBS = {"huge": write_huge, "deep": write_deep, "deep object": write_deep_object}


@contextmanager
def within(seconds: float, mebibytes: int) -> Iterator[None]:
    """What stands below must not take longer, nor this process more memory than it had, at any moment."""

    def kibibytes(name: str) -> int:
        return next(
            int(line.split()[1])
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith(name)
        )

    Path("/proc/self/clear_refs").write_text("5")  # sets the peak back to what is held now
    held, began = kibibytes("VmRSS"), time.monotonic()
    yield
    took, more = time.monotonic() - began, (kibibytes("VmHWM") - held) >> 10
    assert took < seconds, "too slow"
    assert more < mebibytes, "too much memory"


@pytest.mark.skipif(not FULL, reason="takes gigabytes; of the full run")
def test_a_huge_file_fills_the_memory_of_a_plain_reader(tmp_path: Path) -> None:
    write_huge(tmp_path / "x.json")
    with (
        pytest.raises(AssertionError, match="too much memory"),
        within(120, 600),
        pytest.raises(ValueError, match="line 1"),
    ):
        json.loads((tmp_path / "x.json").read_text())


def test_a_deep_file_ends_a_plain_reader(tmp_path: Path) -> None:
    write_deep(tmp_path / "x.json")
    with pytest.raises(RecursionError):
        json.loads((tmp_path / "x.json").read_text())


def of_a_run(tmp_path: Path) -> Path:
    return tmp_path / "results" / "openwebtext2" / models.variants.ALIASES["adm"] / "run"


def of_data(tmp_path: Path) -> Path:
    folder = tmp_path / "data" / "openwebtext2"
    shutil.copytree(PEER / "datasets" / "openwebtext2", folder, dirs_exist_ok=True)
    return folder


def of_the_authors(tmp_path: Path) -> Path:
    folder = tmp_path / "authors"
    shutil.copytree(next(PEER.glob("exps/*/*/official_adm")), folder, dirs_exist_ok=True)
    return folder


# what reads the file, from the folder where it lies, and with which words
REFUSE: dict[str, tuple[str, Callable[[Path], Path], Program, Callable[[Path], list[object]]]] = {
    "config of a training": (
        "config.json",
        lambda path: path,
        training.main,
        lambda path: ["--config", path / "config.json"],
    ),
    "config of an evaluation": (
        "config.json",
        lambda path: path,
        evaluation.main,
        lambda path: ["--config", path / "config.json"],
    ),
    "data of a training": (
        "meta.json",
        of_data,
        training.main,
        lambda path: flags(path / "results", data_dir=path / "data"),
    ),
    "data for people": (
        "meta.json",
        of_data,
        data.inspect.main,
        lambda path: [path / "data" / "openwebtext2"],
    ),
    "summary of a training": ("summary.json", of_a_run, training.main, lambda path: flags(path / "results")),
    "ledger of a training": ("segments.jsonl", of_a_run, training.main, lambda path: flags(path / "results")),
    "metrics of a training": ("metrics.jsonl", of_a_run, training.main, lambda path: flags(path / "results")),
    "ledger before a job": (
        "segments.jsonl",
        of_a_run,
        check_job,
        lambda path: ["--", *flags(path / "results")],
    ),
    "summary of the authors": (
        "summary.json",
        of_the_authors,
        evaluation.main,
        lambda path: ["--checkpoint", path / "authors"],
    ),
    "sweep to go on with": (
        "ppl_per_mac.json",
        of_the_authors,
        get_ppl_per_mac.main,
        lambda path: [
            "--checkpoint",
            path / "authors",
            "--data_dir",
            PEER / "datasets",
            "--eval_sample_size",
            96,
        ],
    ),
    "figure of a sweep": (
        "ppl_per_mac.json",
        lambda path: path,
        plot_fig4.main,
        lambda path: [path / "ppl_per_mac.json", "--output_dir", path / "out"],
    ),
    "description of router weights": (
        "w_meta.json",
        lambda path: path,
        plot_fig5.main,
        lambda path: [path / "w.npz", "--output_dir", path / "out"],
    ),
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("reader", REFUSE)
def test_json_that_would_fill_memory_or_stack_is_refused_in_a_line(
    tmp_path: Path, call: Any, reader: str, bomb: str
) -> None:
    name, place, program, words = REFUSE[reader]
    folder = place(tmp_path)
    folder.mkdir(parents=True, exist_ok=True)
    BOMBS[bomb](folder / name)
    np.savez(tmp_path / "w.npz", weights=np.full((4, 2), 0.5, dtype="f4"))
    with within(60, 600):
        outcome = call(program, *words(tmp_path))
    assert name in one_line(outcome)


LISTS: dict[str, tuple[str, Program, Callable[[Path], list[object]]]] = {
    **{
        f"table, {name}": (name, status.main, lambda path: [path])
        for name in ("status.json", "summary.json", "segments.jsonl")
    },
    "list, status.json": ("status.json", status.main, lambda path: ["--json", path]),
    "page, segments.jsonl": (
        "segments.jsonl",
        status.main,
        lambda path: ["--html", path / "page.html", path],
    ),
    "report, eval_summary_ckpt.json": (
        "eval_summary_ckpt.json",
        report.__main__.main,
        lambda path: [path, "--output", path / "report"],
    ),
    "report, ppl_per_mac.json": (
        "ppl_per_mac.json",
        report.__main__.main,
        lambda path: [path, "--output", path / "report"],
    ),
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("reader", LISTS)
def test_json_that_would_fill_memory_or_stack_is_named_among_many(
    tmp_path: Path, call: Any, reader: str, bomb: str
) -> None:
    name, program, words = LISTS[reader]
    (tmp_path / "run").mkdir()
    BOMBS[bomb](tmp_path / "run" / name)
    with within(60, 600):
        outcome = call(program, *words(tmp_path))
    said = outcome.out + outcome.err + ((tmp_path / "page.html").read_text() if "page" in reader else "")
    assert "Traceback" not in said and name in said, outcome


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("name", ["status.json", "summary.json"])
def test_a_job_is_refused_before_it_is_queued_where_its_training_would_refuse_what_its_experiment_holds(
    tmp_path: Path, call: Any, name: str, bomb: str
) -> None:
    of_a_run(tmp_path).mkdir(parents=True)
    BOMBS[bomb](of_a_run(tmp_path) / name)
    with within(60, 600):
        outcomes = (
            call(check_job, "--", *flags(tmp_path / "results")),
            call(training.main, *flags(tmp_path / "results", **QUICK)),
        )
    for outcome in outcomes:
        assert outcome.code == 2 and f"{name} cannot be read" in outcome.err, outcome


@pytest.mark.parametrize("bomb", BOMBS)
def test_the_end_of_a_chain_is_told_whatever_its_status_holds(tmp_path: Path, call: Any, bomb: str) -> None:
    BOMBS[bomb](tmp_path / "status.json")
    with within(60, 600):
        outcome = call(
            lambda words: guarded("chain", lambda: chain.main(words) or 0), tmp_path, "--ended", "a test"
        )
    works_or_is_refused(outcome)


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_lock_that_is_no_name_holds_nobody_up(tmp_path: Path, call: Any, bomb: str) -> None:
    of_a_run(tmp_path).mkdir(parents=True)
    BOMBS[bomb](of_a_run(tmp_path) / "lock")
    with within(30, 600):
        assert call(training.main, *flags(tmp_path / "results", **QUICK)).code == 0


# secrets


# of the length that wandb asks for
KEY, TOKEN = "5ec2e7" + "0123456789abcdef" * 2 + "ff", "hf_MarkerThatNobodyElseWrites0123456789"


class Watch:
    """Looks at the command lines of all processes until it is stopped; keeps those that hold a word."""

    def __init__(self, *words: str) -> None:
        self.words, self.found, self.rounds = [word.encode() for word in words], set[bytes](), 0
        self.stopped = threading.Event()
        self.thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self.stopped.wait(0.05):
            self.rounds += 1
            for folder in Path("/proc").glob("[0-9]*"):
                try:
                    line = (folder / "cmdline").read_bytes()
                except OSError:
                    continue
                if any(word in line for word in self.words):
                    self.found.add(line)

    def __enter__(self) -> Watch:
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self.thread.join()


def holding(folder: Path, *words: str) -> list[Path]:
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and any(word.encode() in path.read_bytes() for word in words)
    ]


def test_a_secret_in_a_command_line_is_seen(tmp_path: Path) -> None:
    with Watch("a-secret-of-this-test") as watch:
        subprocess.run(
            [sys.executable, "-c", "import time; time.sleep(1)", "a-secret-of-this-test"], check=True
        )
    assert watch.found


class Run(NamedTuple):
    outcome: Outcome
    folder: Path  # results, run folder, wandb's files
    watch: Watch


@pytest.fixture(scope="module")
def with_secrets(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A training as a job in the foreground, whose name, folders and project are hostile too; everything
    that writes, writes below one folder.
    """
    folder = tmp_path_factory.mktemp("secrets")
    name = f"$(touch {MARK}) `touch {MARK}`;touch {MARK};'\" * -x"
    shutil.copytree(PEER / "datasets", folder / name / "datasets")
    with Watch(KEY, TOKEN) as watch:
        outcome = job(
            "base-train",
            "base",
            "12",
            "--local",
            "--name",
            name,
            "--",
            *SMALL,
            SCRATCH_DIR=str(folder / name / "scratch"),
            WANDB="1",
            RESULTS_DIR=str(folder / name / "results"),
            DATA_DIR=str(folder / name / "datasets"),
            WANDB_PROJECT="a $(b) `c` 'd'",
            HOME=str(folder),
            WANDB_API_KEY=KEY,
            HF_TOKEN=TOKEN,
        )
    shown = [
        line.removeprefix("run folder: ")
        for line in outcome.out.splitlines()
        if line.startswith("run folder: ")
    ]
    for run_dir in shown:
        shutil.move(run_dir, folder / "run")
    return Run(outcome, folder, watch)


def test_a_job_with_hostile_names_does_its_work(with_secrets: Run) -> None:
    assert with_secrets.outcome.code == 0, with_secrets.outcome
    assert list((with_secrets.folder).glob("*/results/openwebtext2/base/*/summary.json"))


def test_a_job_with_hostile_names_runs_nothing_of_them(with_secrets: Run) -> None:
    assert not landed() and not list(with_secrets.folder.rglob(MARK))


def test_a_job_logs_to_wandb_without_a_network(with_secrets: Run) -> None:
    assert list(with_secrets.folder.rglob("run-*.wandb"))


def test_no_file_of_a_job_holds_a_secret(with_secrets: Run) -> None:
    assert (with_secrets.folder / "run" / "command.txt").exists() and holding(
        with_secrets.folder, "openwebtext2"
    )
    assert not holding(with_secrets.folder, KEY, TOKEN)


def test_a_job_does_not_print_secrets(with_secrets: Run) -> None:
    assert not any(secret in with_secrets.outcome.out + with_secrets.outcome.err for secret in (KEY, TOKEN))


def test_no_command_line_of_a_job_holds_a_secret(with_secrets: Run) -> None:
    assert with_secrets.watch.rounds > 10
    assert not with_secrets.watch.found


def test_what_a_job_would_do_is_shown_without_secrets(tmp_path: Path) -> None:
    with Watch(KEY, TOKEN) as watch:
        outcome = job(
            "base-train",
            "base",
            "12",
            "--local",
            "--dry-run",
            "--",
            *SMALL,
            SCRATCH_DIR=str(tmp_path),
            HOME=str(tmp_path),
            WANDB="1",
            WANDB_API_KEY=KEY,
            HF_TOKEN=TOKEN,
        )
    assert outcome.code == 0 and not any(secret in outcome.out + outcome.err for secret in (KEY, TOKEN)), (
        outcome
    )
    assert not holding(tmp_path, KEY, TOKEN) and not watch.found


@pytest.mark.parametrize("way", ["table", "json", "page", "preflight"])
def test_those_that_look_show_no_secrets(
    with_secrets: Run, tmp_path: Path, call: Any, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    words: dict[str, list[Any]] = {
        "table": [],
        "json": ["--json"],
        "page": ["--html", tmp_path / "page.html"],
    }
    words["preflight"] = ["--", *flags(tmp_path / "results")]
    outcome = call(
        check_job if way == "preflight" else status.main,
        *words[way],
        *([] if way == "preflight" else [with_secrets.folder]),
    )
    assert outcome.code == 0 and not any(secret in outcome.out + outcome.err for secret in (KEY, TOKEN)), (
        outcome
    )
    assert not holding(tmp_path, KEY, TOKEN)
