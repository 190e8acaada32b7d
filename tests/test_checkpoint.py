"""Checkpoints: exact round trips, damage that is noticed, hostile files that do nothing, strict loading."""

import io
import random
import re
import resource
import threading
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

import config
import models
from errors import UserError
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
from optim.optimizers import load_optimizer_state, make_optimizer
from optim.saving import BackgroundWriter
from tests.helpers import PEER, fill, tiny_args, tiny_model, tokens

CPU = torch.device("cpu")
PEER_CHECKPOINTS = sorted(PEER.glob("exps/owt2/*/*/ckpt*.pt"))


def small_state(step=3):
    torch.manual_seed(step)
    return {
        "itr": step,
        "model": {"a.weight": torch.randn(5, 7), "b": torch.arange(4)},
        "rng": [{"words": [1, 2**40], "gauss": None}],
        "args": {"lr": 0.1, "name": "x", "factors": [0.5, 0.25], "bias": False},
    }


def same(one, other):
    """Equal down to types and bits of tensors."""
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        return (
            one.dtype == other.dtype
            and one.shape == other.shape
            and one.numpy().tobytes() == other.numpy().tobytes()
        )
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other or (one != one and other != other)


def saved(path, state=None):
    save_checkpoint(path, state or small_state())
    return path


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


# damage


def loads_as(path, expected):
    """Whether a damaged file is either refused as such, or holds what it held."""
    try:
        return same(load_checkpoint(path), expected)
    except UserError:
        return True


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999])
def test_truncated_file_is_refused(tmp_path, share):
    path = saved(tmp_path / "ckpt.pt", {"model": {"a": torch.randn(100, 100)}})
    raw = path.read_bytes()
    path.write_bytes(raw[: int(share * len(raw))])
    with pytest.raises(UserError, match=r"ckpt\.pt is not a valid checkpoint"):
        load_checkpoint(path)


@pytest.mark.parametrize("missing", [1, 2, 22, 100])
def test_file_without_its_last_bytes_is_refused(tmp_path, missing):
    path = saved(tmp_path / "ckpt.pt")
    path.write_bytes(path.read_bytes()[:-missing])
    with pytest.raises(UserError, match=r"ckpt\.pt is not"):
        load_checkpoint(path)


def test_block_of_zeros_in_the_tensors_is_noticed(tmp_path):
    path = saved(tmp_path / "ckpt.pt", {"model": {"a": torch.randn(100, 100)}})
    raw = path.read_bytes()
    path.write_bytes(raw[:20000] + bytes(4096) + raw[24096:])
    with pytest.raises(UserError, match=r"ckpt\.pt is not a valid checkpoint"):
        load_checkpoint(path)


def test_no_flipped_bit_changes_what_is_loaded(tmp_path):
    state = {
        **small_state(),
        "model": {f"layer.{number}.weight": torch.randn(40, 40) for number in range(12)},
    }
    path = saved(tmp_path / "ckpt.pt", state)
    raw, places, wrong = path.read_bytes(), random.Random(5), []
    for _ in range(50):
        place = places.randrange(8 * len(raw))
        path.write_bytes(flipped(raw, place))
        if not loads_as(path, state):
            wrong.append(place)
    assert wrong == []


def flipped(raw, bit):
    return raw[: bit // 8] + bytes([raw[bit // 8] ^ 1 << bit % 8]) + raw[bit // 8 + 1 :]


def bits_of_entry(raw, record):
    """Bits of a record's entry in the zip directory at the end of a checkpoint, up to the record's name."""
    with zipfile.ZipFile(io.BytesIO(raw)) as archive:
        name = next(info.filename for info in archive.infolist() if info.filename.endswith(record)).encode()
    return range(8 * (raw.rindex(name) - 46), 8 * raw.rindex(name))


@pytest.mark.slow
@pytest.mark.parametrize("record", ["/data.pkl", "/data/0"])
def test_no_flipped_bit_of_a_directory_entry_changes_what_is_loaded(tmp_path, record):
    path, wrong = saved(tmp_path / "ckpt.pt"), []
    raw = path.read_bytes()
    for bit in bits_of_entry(raw, record):
        path.write_bytes(flipped(raw, bit))
        if not loads_as(path, small_state()):
            wrong.append(bit)
    assert wrong == []


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello, I am no checkpoint\n" * 100,
        bytes(1000),
        b"PK\x03\x04" + bytes(500),
        b"PK\x05\x06" + bytes(18),
    ],
    ids=["empty", "text", "zeros", "start of a zip", "empty zip"],
)
def test_file_that_is_no_checkpoint_is_refused(tmp_path, content):
    (tmp_path / "ckpt.pt").write_bytes(content)
    with pytest.raises(UserError, match=r"ckpt\.pt is not"):
        load_checkpoint(tmp_path / "ckpt.pt")


@pytest.mark.parametrize(
    "records",
    [
        {"readme.txt": b"hello"},
        {"archive/data.pkl": b"", "archive/version": b"3\n"},
        {"archive/data.pkl": b"\x80\x02.", "archive/version": b"3\n"},
        {"archive/data.pkl": b"\x80\x02}q\x00.", "archive/version": b"3\n"},
        {"archive/data.pkl": b"\x80\x02K\x05.", "archive/version": b"3\n"},
    ],
    ids=["other zip", "empty pickle", "nothing pickled", "empty dict", "a number"],
)
def test_zip_without_a_model_is_refused(tmp_path, records):
    with zipfile.ZipFile(tmp_path / "ckpt.pt", "w") as archive:
        for name, content in records.items():
            archive.writestr(name, content)
    with pytest.raises(UserError, match=r"ckpt\.pt is not"):
        load_checkpoint(tmp_path / "ckpt.pt")


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"ckpt\.pt is not"):
        load_checkpoint(tmp_path / "ckpt.pt")


def test_folder_is_refused(tmp_path):
    with pytest.raises(UserError, match="is not a valid checkpoint"):
        load_checkpoint(tmp_path)


class Hostile:
    """Creates a file when it is unpickled."""

    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return Path.touch, (self.trace,)


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["model", "args"])
def test_hostile_checkpoint_is_refused(tmp_path, where, zipped):
    torch.save(
        {**small_state(), where: {"x": Hostile(tmp_path / "trace")}},
        tmp_path / "ckpt.pt",
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(UserError, match=r"ckpt\.pt is not"):
        load_checkpoint(tmp_path / "ckpt.pt")


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize("where", ["model", "args"])
def test_hostile_checkpoint_does_not_execute(tmp_path, where, zipped):
    torch.save(
        {**small_state(), where: {"x": Hostile(tmp_path / "trace")}},
        tmp_path / "ckpt.pt",
        _use_new_zipfile_serialization=zipped,
    )
    with pytest.raises(UserError):
        load_checkpoint(tmp_path / "ckpt.pt")
    assert not (tmp_path / "trace").exists()


def test_hostile_example_would_execute_without_protection(tmp_path):
    torch.save({"model": Hostile(tmp_path / "trace")}, tmp_path / "ckpt.pt")
    torch.load(tmp_path / "ckpt.pt", weights_only=False)
    assert (tmp_path / "trace").exists()


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


@pytest.mark.slow
@pytest.mark.parametrize("record", ["/data.pkl", "/data/0"])
def test_checkpoint_that_is_taken_can_be_loaded(tmp_path, record):
    saved(tmp_path / "ckpt_1.pt", small_state(1))
    raw, wrong = saved(tmp_path / "ckpt_2.pt", small_state(2)).read_bytes(), []
    for bit in bits_of_entry(raw, record):
        (tmp_path / "ckpt_2.pt").write_bytes(flipped(raw, bit))
        try:
            load_checkpoint(newest_valid(tmp_path)[0])
        except Exception as error:
            wrong.append((bit, str(error)[-80:]))
    assert wrong == []


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


# optimiser states

OPTIMIZERS = ["adamw", "sgd", "adafactor"]


def trained(opt, steps=3, model=None, optimizer=None):
    """A tiny model and its optimiser after some steps."""
    args = tiny_args("lncot", "--opt", opt, "--depth_embedding", "learned")
    model = model or fill(models.make_model_from_args(args), 5)
    optimizer = optimizer or make_optimizer(model, args)
    for step in range(steps):
        model(tokens(2, 16, seed=step), targets=tokens(2, 16, seed=step + 1))["loss"].backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_optimiser_goes_on_exactly_from_its_saved_state(tmp_path, opt):
    model, optimizer = trained(opt)
    state = load_checkpoint(
        saved(tmp_path / "ckpt.pt", {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    )
    unbroken, _ = trained(opt, 3, model, optimizer)
    second, second_optimizer = trained(opt, 0)
    load_weights(second, state["model"])
    load_optimizer_state(second_optimizer, state["optimizer"])
    resumed, _ = trained(opt, 3, second, second_optimizer)
    assert same(dict(resumed.state_dict()), dict(unbroken.state_dict()))


def matrix_state(optimizer):
    """(parameter name, state name, state tensor) of the first state that follows the shape of a matrix."""
    for group in optimizer.param_groups:
        for name, parameter in zip(group["param_names"], group["params"], strict=True):
            for key, value in optimizer.state[parameter].items():
                if parameter.dim() == 2 and isinstance(value, torch.Tensor) and value.dim() == 2:
                    return name, key, value
    raise AssertionError("no state")


@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_optimiser_state_of_another_shape_is_named_with_both_shapes(opt):
    _, optimizer = trained(opt)
    name, key, value = matrix_state(optimizer)
    shape = tuple(value.shape)
    state = optimizer.state_dict()
    for entry in state["state"].values():
        if entry.get(key) is value:
            entry[key] = torch.zeros(shape[0] + 1, shape[1])
    expected = f"{key} of {name} is {(shape[0] + 1, shape[1])} in the file, {shape} in this run"
    with pytest.raises(UserError, match=re.escape(expected)):
        load_optimizer_state(trained(opt, 0)[1], state)


@pytest.mark.parametrize(
    ("saved_by", "loaded_by"),
    [("adamw", "sgd"), ("sgd", "adamw"), ("adafactor", "adamw"), ("adamw", "adafactor")],
)
def test_state_of_another_optimiser_is_refused(saved_by, loaded_by):
    with pytest.raises(UserError, match="another optimiser"):
        load_optimizer_state(trained(loaded_by, 0)[1], trained(saved_by, 1)[1].state_dict())


def test_optimiser_state_of_other_parameters_names_them():
    args = tiny_args("lncot", "--depth_embedding", "learned", "--bias")
    state = make_optimizer(models.make_model_from_args(args), args).state_dict()
    with pytest.raises(UserError, match=r"parameters differ .*transformer\.h_begin\.0\.attn\.c_attn\.bias"):
        load_optimizer_state(trained("adamw", 0)[1], state)


def test_optimiser_state_without_names_is_refused():
    state = trained("adamw", 1)[1].state_dict()
    for group in state["param_groups"]:
        del group["param_names"]
    with pytest.raises(UserError, match="parameters differ"):
        load_optimizer_state(trained("adamw", 0)[1], state)


# weights


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_weights_load_from_under_wrappers(prefix):
    source = tiny_model("lncot", seed=1)
    target = tiny_model("lncot", seed=2)
    load_weights(target, {prefix + name: value for name, value in source.state_dict().items()})
    assert same(dict(target.state_dict()), dict(source.state_dict()))


@pytest.mark.parametrize("extra", ["transformer.h_mid.0.attn.bias", "transformer.mod.2.mod_router.weight"])
def test_names_that_the_authors_have_beside_ours_are_tolerated(extra):
    model = tiny_model("adm")
    load_weights(model, {**model.state_dict(), extra: torch.zeros(1, 32)})
    assert extra not in model.state_dict()


def test_missing_angles_are_tolerated():
    model = tiny_model("lncot")
    load_weights(
        model, {name: value for name, value in model.state_dict().items() if name != "transformer.wpe.freqs"}
    )
    assert model.transformer["wpe"].freqs[0] == 1.0


def test_weight_of_another_shape_is_named_with_both_shapes():
    state = {**tiny_model("lncot").state_dict(), "transformer.ln_mid.weight": torch.zeros(48)}
    with pytest.raises(
        UserError, match=r"transformer\.ln_mid\.weight is \(48,\) in the file, \(32,\) in this model"
    ):
        load_weights(tiny_model("lncot"), state)


def test_weights_that_fail_to_load_change_nothing():
    model = tiny_model("lncot", seed=1)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError):
        load_weights(
            model, {**tiny_model("lncot", seed=2).state_dict(), "transformer.ln_mid.weight": torch.zeros(48)}
        )
    assert same(dict(model.state_dict()), before)


@pytest.mark.parametrize(
    ("of", "into", "said"),
    [
        ("lncot", "cot", r"it has the unknown transformer\.ln_mid\.weight"),
        ("cot", "lncot", r"it lacks transformer\.ln_mid\.weight"),
        ("base", "cot", r"it has the unknown transformer\.h\.0\.attn\.c_attn\.weight; \d+ more names differ"),
    ],
)
def test_weights_of_another_model_name_the_difference(of, into, said):
    with pytest.raises(UserError, match="the file is of another model: " + said):
        load_weights(tiny_model(into), tiny_model(of).state_dict())


@pytest.mark.parametrize(
    "missing", ["transformer.ln_f.weight", "transformer.mod.0.mod_router.weight", "lm_head.weight"]
)
def test_missing_weight_is_named(missing):
    state = tiny_model("adm").state_dict()
    del state[missing]
    with pytest.raises(UserError, match=f"it lacks {re.escape(missing)}"):
        load_weights(tiny_model("adm"), state)


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
