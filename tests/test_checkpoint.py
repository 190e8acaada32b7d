"""Checkpoints: exact round trips, which one is taken, writes that fail, random streams."""

import random
import resource
import threading

import numpy as np
import pytest
import torch

import config
import models
from errors import UserError
from files import save_array, write_atomically
from models.weights import load_weights
from optim.checkpoint import (
    load_checkpoint,
    newest_valid,
    prune,
    random_states,
    restore_random_states,
    save_checkpoint,
    to_cpu,
)
from optim.names import numbered
from optim.saving import BackgroundWriter
from tests.helpers import PEER, same, saved, small_state

CPU = torch.device("cpu")
PEER_CHECKPOINTS = sorted(PEER.glob("exps/owt2/*/*/ckpt*.pt"))


# round trips


def test_nested_state_comes_back_bit_for_bit(tmp_path):
    state = {
        "model": {
            "float": torch.randn(3, 4),
            "half": torch.randn(5).bfloat16().float(),
            "int": torch.arange(6),
            "bool": torch.tensor([True, False]),
            "odd": torch.tensor([float("nan"), float("inf"), -0.0, 1e-45]),
            "empty": torch.empty(0, 3),
            "scalar": torch.tensor(2.5),
        },
        "list": [1, 2.5, "text", None, True, [2**62, -1]],
        "tuple": (1, "x"),
        "dict": {1: {"deep": torch.ones(2, dtype=torch.uint8)}},
    }
    assert same(load_checkpoint(saved(tmp_path / "ckpt.pt", state)), state)


def test_own_checkpoint_loads_with_plain_weights_only(tmp_path):
    assert same(torch.load(saved(tmp_path / "ckpt.pt"), weights_only=True), small_state())


def test_tied_weights_stay_tied(tmp_path):
    weight = torch.randn(1000)
    one = saved(tmp_path / "one.pt", {"model": {"a": weight}}).stat().st_size
    assert saved(tmp_path / "two.pt", {"model": {"a": weight, "b": weight}}).stat().st_size < 1.3 * one


def test_saving_replaces_what_was_there(tmp_path):
    saved(tmp_path / "ckpt.pt", small_state(1))
    assert load_checkpoint(saved(tmp_path / "ckpt.pt", small_state(2)))["itr"] == 2


def test_saving_leaves_only_the_checkpoint(tmp_path):
    saved(tmp_path / "ckpt.pt")
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt.pt"]


def test_four_peer_checkpoints_are_there():
    assert len(PEER_CHECKPOINTS) == 4


@pytest.mark.parametrize("path", PEER_CHECKPOINTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_authors_checkpoints_load_safely(path):
    assert load_checkpoint(path)["itr"] == (75 if path.stem == "ckpt_75" else 150)


@pytest.mark.parametrize("path", PEER_CHECKPOINTS, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_the_authors_weights_load_into_our_model(path):
    args = config.parse_args(
        [
            "--model",
            path.parents[1].name,
            "--n_layer",
            "4",
            "--n_layer_begin",
            "1",
            "--n_layer_end",
            "1",
            "--n_repeat",
            "3",
            "--n_embd",
            "32",
            "--n_head",
            "4",
            "--sequence_length",
            "48",
            "--vocab_size",
            "256",
            *(["--depth_embedding", "linear_learned"] if "adm" in path.parent.name else []),
        ]
    )
    model, state = models.make_model_from_args(args), load_checkpoint(path)["model"]
    load_weights(model, state)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


# choosing


def damage(path):
    raw = path.read_bytes()
    path.write_bytes(raw[: len(raw) // 2])


def test_newest_checkpoint_is_taken(tmp_path):
    for step in (5, 103, 120, 99, 111):
        saved(tmp_path / f"ckpt_{step}.pt")
    assert newest_valid(tmp_path) == (tmp_path / "ckpt_120.pt", [])


def test_final_checkpoint_goes_before_numbered_ones(tmp_path):
    for name in ("ckpt_5.pt", "ckpt.pt", "ckpt_100.pt"):
        saved(tmp_path / name)
    assert newest_valid(tmp_path)[0] == tmp_path / "ckpt.pt"


def test_damaged_checkpoint_is_passed_over(tmp_path):
    for step in (5, 20, 100):
        saved(tmp_path / f"ckpt_{step}.pt")
    damage(tmp_path / "ckpt_100.pt")
    assert newest_valid(tmp_path)[0] == tmp_path / "ckpt_20.pt"


def test_passing_over_a_damaged_checkpoint_is_noted(tmp_path):
    for step in (5, 100):
        saved(tmp_path / f"ckpt_{step}.pt")
    damage(tmp_path / "ckpt_100.pt")
    assert [note.split(":")[0] for note in newest_valid(tmp_path)[1]] == ["passing over ckpt_100.pt"]


def test_only_damaged_checkpoints_are_an_error(tmp_path):
    for step in (5, 100):
        damage(saved(tmp_path / f"ckpt_{step}.pt"))
    with pytest.raises(UserError, match=r"no valid checkpoint .*ckpt_100\.pt.*ckpt_5\.pt"):
        newest_valid(tmp_path)


@pytest.mark.parametrize(
    "name",
    [
        "xckpt_5.pt",
        "ckpt_5.pt.bak",
        "ckpt_.pt",
        "ckpt_5x.pt",
        "ckpt_-5.pt",
        ".ckpt_5.pt.77.tmp",
        "ckpt_5.ptx",
        "ckpt5.pt",
    ],
)
def test_other_names_are_no_checkpoints(tmp_path, name):
    saved(tmp_path / name)
    assert newest_valid(tmp_path) == (None, [])


def test_missing_folder_has_no_checkpoint(tmp_path):
    assert newest_valid(tmp_path / "nothing") == (None, [])


@pytest.mark.parametrize(
    ("keep", "left"), [(1, [100]), (2, [100, 20]), (3, [100, 20, 5]), (9, [100, 20, 5]), (0, [100, 20, 5])]
)
def test_pruning_keeps_the_newest(tmp_path, keep, left):
    for step in (5, 100, 20):
        saved(tmp_path / f"ckpt_{step}.pt")
    prune(tmp_path, keep)
    assert numbered(tmp_path) == [tmp_path / f"ckpt_{step}.pt" for step in left]


def test_pruning_neither_deletes_nor_counts_the_steps_that_are_kept(tmp_path):
    for step in (5, 100, 20, 40):
        saved(tmp_path / f"ckpt_{step}.pt")
    prune(tmp_path, 1, kept_steps={20, 100, 7})
    assert numbered(tmp_path) == [tmp_path / f"ckpt_{step}.pt" for step in (100, 40, 20)]


def test_pruning_touches_nothing_else(tmp_path):
    for name in ("ckpt.pt", "ckpt_5.pt", "ckpt_6.pt", "xckpt_5.pt", "ckpt_5.pt.bak", "summary.json"):
        (tmp_path / name).touch()
    prune(tmp_path, 1)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "ckpt.pt",
        "ckpt_5.pt.bak",
        "ckpt_6.pt",
        "summary.json",
        "xckpt_5.pt",
    ]


# failing writes


@pytest.fixture
def full_disk():
    """Files cannot grow beyond 16 KiB: writing fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 14, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


LARGE = {"model": {"a": torch.zeros(100_000)}}


def test_failing_write_raises_oserror(tmp_path, full_disk):
    with pytest.raises(OSError):
        save_checkpoint(tmp_path / "ckpt.pt", LARGE)


def test_failing_write_of_any_file_names_it(tmp_path, full_disk):
    with pytest.raises(OSError) as failed:
        write_atomically(tmp_path / "page.html", bytes(1 << 15))
    assert (failed.value.filename, failed.value.strerror) == (str(tmp_path / "page.html"), "File too large")


def test_failing_write_of_an_array_tells_why(tmp_path, full_disk):
    with pytest.raises(OSError) as failed:
        save_array(tmp_path / "index.npy", np.zeros(1 << 14))
    assert (failed.value.filename, failed.value.strerror) == (str(tmp_path / "index.npy"), "File too large")


def test_failing_write_leaves_the_old_file(tmp_path, full_disk):
    before = saved(tmp_path / "ckpt.pt").read_bytes()
    with pytest.raises(OSError):
        save_checkpoint(tmp_path / "ckpt.pt", LARGE)
    assert (tmp_path / "ckpt.pt").read_bytes() == before


def test_failing_write_leaves_no_temporary_file(tmp_path, full_disk):
    with pytest.raises(OSError):
        save_checkpoint(tmp_path / "ckpt.pt", LARGE)
    assert list(tmp_path.iterdir()) == []


def test_state_that_cannot_be_pickled_leaves_the_old_file(tmp_path):
    before = saved(tmp_path / "ckpt.pt").read_bytes()
    with pytest.raises((AttributeError, TypeError)):
        save_checkpoint(tmp_path / "ckpt.pt", {"model": {"a": torch.zeros(9)}, "lock": threading.Lock()})
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [before]


def test_background_writer_hands_errors_on(tmp_path, full_disk):
    writer = BackgroundWriter()
    writer.submit(lambda: save_checkpoint(tmp_path / "ckpt.pt", LARGE))
    with pytest.raises(OSError):
        writer.wait()


def test_background_writer_goes_on_after_an_error(tmp_path):
    writer = BackgroundWriter()
    writer.submit(lambda: save_checkpoint(tmp_path / "missing" / "ckpt.pt", LARGE))
    with pytest.raises(OSError):
        writer.wait()
    writer.submit(lambda: save_checkpoint(tmp_path / "ckpt.pt", small_state()))
    writer.wait()
    assert same(load_checkpoint(tmp_path / "ckpt.pt"), small_state())


def test_background_writer_writes_one_after_the_other():
    writer, done, gate = BackgroundWriter(), [], threading.Event()
    writer.submit(lambda: gate.wait(10) and done.append("first"))
    threading.Timer(0.05, gate.set).start()
    writer.submit(lambda: done.append("second"))
    writer.wait()
    assert done == ["first", "second"]


def test_background_writer_is_idle_when_nothing_is_written():
    writer, gate = BackgroundWriter(), threading.Event()
    states = [writer.idle]
    writer.submit(lambda: gate.wait(10))
    states.append(writer.idle)
    gate.set()
    writer.wait()
    assert [*states, writer.idle] == [True, False, True]


def test_copy_for_writing_shares_no_memory():
    state = {"model": {"a": torch.zeros(3)}, "list": [torch.zeros(3)], "tuple": (torch.zeros(3), 1)}
    copy = to_cpu(state)
    state["model"]["a"] += 1
    state["list"][0] += 1
    state["tuple"][0].add_(1)
    assert same(
        copy, {"model": {"a": torch.zeros(3)}, "list": [torch.zeros(3)], "tuple": (torch.zeros(3), 1)}
    )


# random streams


def draw_all():
    return [
        torch.rand(3).tolist(),
        torch.randint(0, 99, (2,)).tolist(),
        np.random.rand(2).tolist(),
        np.random.randn(1).tolist(),
        random.random(),
        random.gauss(0, 1),
    ]


@pytest.mark.parametrize("drawn_before", [0, 1, 2])
def test_random_streams_go_on_exactly(tmp_path, drawn_before):
    for _ in range(drawn_before):
        draw_all()
    path = saved(tmp_path / "ckpt.pt", {"model": {}, "rng": random_states(CPU)})
    expected = [draw_all() for _ in range(3)]
    torch.manual_seed(99)
    np.random.seed(99)
    random.seed(99)
    restore_random_states(load_checkpoint(path)["rng"], CPU)
    assert [draw_all() for _ in range(3)] == expected
