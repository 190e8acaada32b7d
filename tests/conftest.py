"""What all tests share: the repository on the import path, fixed examples for hypothesis, BPE ranks in a
folder of the tests' own, a small corpus and its dataset.
"""

import json
import os
import signal
import sys
from io import StringIO
from pathlib import Path

import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

# the caller's own site; iridis/env.sh exports some
for name in ("DATA_DIR", "RESULTS_DIR", "TEAM_DIR", "WANDB_DIR", "WANDB_MODE"):
    os.environ.pop(name, None)
# a shell has it ignored in what it runs in the background, and children inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)  # as the reference values were made; tiny models are slower on more
settings.register_profile("suite", deadline=None, derandomize=True, database=None)
settings.load_profile("suite")

# files that take longest, or wait most: first, so that no worker is left alone with them at the end
LONGEST = (
    "chaos/test_hangs.py",
    "test_training.py",
    "test_gpu_faults.py",
    "chaos/test_kills.py",
    "test_transfer.py",
    "chaos/test_selftest.py",
    "test_jobs.py",
    "test_stopping.py",
    "test_compatibility.py",
    "test_first_job.py",
    "test_attention.py",
)


def pytest_collection_modifyitems(items):
    """The longest files, then those that have slow tests, then the others (with --no-loadscope-reorder)."""
    tests, slow = ROOT / "tests", {item.path for item in items if item.get_closest_marker("slow")}

    def place(item):
        name = str(item.path.relative_to(tests)) if item.path.is_relative_to(tests) else ""
        return LONGEST.index(name) if name in LONGEST else len(LONGEST) + (item.path not in slow)

    items.sort(key=place)


@pytest.fixture(scope="session")
def ranks_folder(tmp_path_factory):
    """A folder that gpt2() may fill with BPE ranks, once for all tests."""
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture
def local(monkeypatch, bpe_cache):
    """No proxy between the tests and their server, and no terminal to ask on."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(sys, "stdin", StringIO())


@pytest.fixture
def site():
    """A web server of the tests' own."""
    from tests.file_server import FileServer, Handler, serving  # once the repository is on the path

    with serving(Handler, FileServer) as server:
        yield server


@pytest.fixture(scope="session")
def quick_venv(tmp_path_factory):
    """For VENV_DIR of scripts that call Python: one that needs no seconds for a start."""
    from tests import forked, forks  # once the repository is on the path

    if sys.platform != "linux" or forked.REAL_START in os.environ:
        yield Path(sys.prefix)
        return
    with forks.environment(tmp_path_factory.mktemp("quick")) as venv:
        yield venv


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the sources, for the calls of job scripts."""
    from tests.programs import copy_sources  # once the repository is on the path

    folder = tmp_path_factory.mktemp("calls") / "clone"
    copy_sources(folder)
    return folder


@pytest.fixture(scope="module")
def no_slurm(tmp_path_factory, quick_venv):
    """Job scripts find no SLURM, and a Python without the seconds of a start."""
    from tests.programs import link_programs  # once the repository is on the path

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PATH", str(link_programs(tmp_path_factory.mktemp("programs") / "bin")))
        patch.setenv("VENV_DIR", str(quick_venv))
        yield


@pytest.fixture
def bpe_cache(ranks_folder, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(ranks_folder))
    return ranks_folder


@pytest.fixture
def corpus(tmp_path, bpe_cache):
    """A file of tests.corpora.DOCUMENTS, and the folder to prepare."""
    from tests.corpora import DOCUMENTS, lines

    path = tmp_path / "corpus.jsonl"
    path.write_bytes(lines(DOCUMENTS))
    return path, tmp_path / "set"


@pytest.fixture(scope="module")
def prepared(tmp_path_factory, ranks_folder):
    """tests.corpora.DOCUMENTS as a dataset: the folder and what meta.json holds. Not to be changed."""
    from tests.corpora import DOCUMENTS, lines, prepare

    folder = tmp_path_factory.mktemp("prepared")
    path = folder / "corpus.jsonl"
    path.write_bytes(lines(DOCUMENTS))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TIKTOKEN_CACHE_DIR", str(ranks_folder))
        assert prepare(folder / "set", path) == 0
    return folder / "set", json.loads((folder / "set" / "meta.json").read_text())


@pytest.fixture
def own(prepared, tmp_path, bpe_cache):
    """A copy of `prepared` that may be changed."""
    folder = tmp_path / "set"
    folder.mkdir()
    for path in prepared[0].iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.fixture
def no_programs(tmp_path_factory, monkeypatch):
    """An empty PATH, whatever this machine has: a test that wants a queue writes one."""
    monkeypatch.setenv("PATH", str(tmp_path_factory.mktemp("empty")))
    monkeypatch.delenv("RESULTS_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
