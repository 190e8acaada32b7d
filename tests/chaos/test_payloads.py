"""Files that run code when they are loaded plainly: refused in one line, and nothing executes."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

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
import plot_fig5
from tests.chaos import scale
from tests.chaos.attacks import MARK, Outcome, Program, one_line
from tests.programs import PEER, ROOT, environment, flags

pytestmark = pytest.mark.slow


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
