"""What all tests share: the repository on the import path, fixed examples for hypothesis, BPE ranks in a
folder of the tests' own.
"""

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
    from tests import quick_python  # once the repository is on the path

    with quick_python.environment(tmp_path_factory.mktemp("quick") / "venv") as folder:
        yield folder


@pytest.fixture
def bpe_cache(ranks_folder, monkeypatch):
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(ranks_folder))
    return ranks_folder
