"""Muon: what it trains and how, resumed to the same bits, and shared among processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from config.groups.optimiser import OPTIMIZERS
from models import make_model_from_args
from models.network import EMBEDDING, MATRIX, NORM, ROUTER, roles_of
from optim.checkpoint import load_checkpoint
from optim.muon import MUON, Muon, orthogonal
from optim.optimizers import make_optimizer
from optim.schedules import make_scheduler
from optim.selftest import differing, leaves
from tests.command_lines import refused
from tests.helpers import tiny_args
from tests.programs import ROOT, python, run
from tests.test_fit import StopAt, train, without_time

SETTINGS: dict[str, Any] = {
    "opt": "muon",
    "lr": 0.02,
    "scalar_lr": 0.01,
    "weight_decay": 0.2,
    "scheduler": "trapezoid",
    "warmup_ratio": 0.25,
    "decay_schedule": "linear",
}


def matrix(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def stepped(parameter: torch.nn.Parameter, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """What one step with a rate of 1 and without decay takes from a parameter."""
    before = parameter.detach().clone()
    Muon([{"params": [parameter], **MUON}], lr=1.0, weight_decay=0.0, dtype=dtype).step()
    return before - parameter.detach()


# the update


@pytest.mark.parametrize("shape", [(16, 64), (64, 16)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_singular_values_come_close_to_one(shape: tuple[int, int], dtype: torch.dtype) -> None:
    values = torch.linalg.svdvals(orthogonal(matrix(*shape).to(dtype)).float())
    assert values.min() > 0.6 and values.max() < 1.4


def test_directions_of_a_gradient_stay_as_they_are() -> None:
    u, _, v = torch.linalg.svd(matrix(24, 24), full_matrices=False)
    gradient = u @ torch.diag(torch.linspace(1, 3, 24)) @ v
    torch.testing.assert_close(orthogonal(gradient), u @ v, rtol=0, atol=0.2)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (4, 3, 2)])
def test_vectors_and_stacks_are_matrices_too(shape: tuple[int, ...]) -> None:
    parameter = torch.nn.Parameter(matrix(*shape))
    parameter.grad = matrix(*shape, seed=1)
    change = stepped(parameter)
    assert change.shape == shape and change.isfinite().all() and change.abs().max() > 0


def test_a_parameter_without_gradient_keeps_its_bits_and_has_no_state() -> None:
    parameter = torch.nn.Parameter(matrix(4, 4))
    assert stepped(parameter).abs().max() == 0


def test_the_step_does_not_depend_on_the_size_of_the_gradient() -> None:
    changes = []
    for scale in (1.0, 1024.0):
        parameter = torch.nn.Parameter(torch.zeros(8, 8))
        parameter.grad = scale * matrix(8, 8)
        changes.append(stepped(parameter))
    torch.testing.assert_close(changes[0], changes[1], rtol=1e-3, atol=1e-4)


# what it trains


def groups_of(model: str, *flags: str) -> dict[str, dict[str, Any]]:
    """The group of each parameter of a tiny model, by its name; rates are those of the first step."""
    args = tiny_args(
        model, "--opt", "muon", "--scheduler", "none", "--depth_embedding", "learned", "--bias", *flags
    )
    optimizer = make_optimizer(make_model_from_args(args), args)
    make_scheduler(optimizer, args)
    return {name: group for group in optimizer.param_groups for name in group["param_names"]}


def test_matrices_alone_are_orthogonalised_and_decay() -> None:
    roles = roles_of(make_model_from_args(tiny_args("adm", "--depth_embedding", "learned", "--bias")))
    for name, group in groups_of("adm").items():
        is_matrix = roles[name] == MATRIX
        assert (group["kind"] == "muon", group["weight_decay"] > 0) == (is_matrix, is_matrix)


@pytest.mark.parametrize(("role", "rate"), [(MATRIX, 0.02), (EMBEDDING, 0.3), (ROUTER, 0.004), (NORM, 0.5)])
def test_each_kind_of_parameter_has_a_rate_of_its_own(role: str, rate: float) -> None:
    roles = roles_of(make_model_from_args(tiny_args("adm", "--depth_embedding", "learned", "--bias")))
    rates = ("--lr", "0.02", "--embedding_lr", "0.3", "--unembedding_lr", "0.004", "--scalar_lr", "0.5")
    found = [group["lr"] for name, group in groups_of("adm", *rates).items() if roles[name] == role]
    assert found == [pytest.approx(rate)] * len(found) != []


def test_rates_that_are_not_given_are_that_of_matrices() -> None:
    assert {group["lr"] for group in groups_of("adm", "--lr", "0.01").values()} == {0.01}


@pytest.mark.parametrize("opt", OPTIMIZERS)
def test_every_parameter_of_modern_blocks_lands_in_one_group(opt: str) -> None:
    flags = ("--block", "modern", "--n_layer_begin", "0", "--n_layer_end", "0", "--opt", opt)
    args = tiny_args("base", *flags)
    network = make_model_from_args(args)
    groups = make_optimizer(network, args).param_groups
    names = sorted(name for group in groups for name in group["param_names"])
    assert names == sorted(name for name, _ in network.named_parameters())


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--opt", "muon", "--beta1", "1"], "--beta1 and --beta2 must be below 1"),
        (["--opt", "muon", "--lr", "0", "--scalar_lr", "1"], "--scalar_lr is kept as a multiple of --lr"),
        (["--opt", "muon", "--embedding_lr", "-1"], "--embedding_lr must be at least 0"),
        (["--muon_dtype", "float16"], "--muon_dtype must be one of auto, float32, bfloat16"),
        (["--warmup_ratio", "1.5"], "--warmup_ratio must be at most 1"),
        (["--decay_schedule", "cos"], "--decay_schedule must be one of constant, linear"),
        (["--opt", "muan"], "did you mean muon?"),
    ],
)
def test_bad_settings_get_a_line(flags: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert any(line in told for told in refused(capsys, *flags))


# resumed


def test_a_paused_training_ends_with_the_bits_of_one_that_never_stopped(tmp_path: Path) -> None:
    whole = train(tmp_path / "whole", **SETTINGS)
    train(tmp_path / "parts", hooks=[StopAt("pause", 5)], **SETTINGS)
    parts = train(tmp_path / "parts", **SETTINGS)
    states = [load_checkpoint(tmp_path / name / "ckpt.pt") for name in ("whole", "parts")]
    for state in states:
        del state["args"]
    kept = leaves(states[0])
    assert any(name.endswith("/second_moment") for name in kept)
    assert differing(kept, leaves(states[1])) == []
    assert without_time(whole) == without_time(parts)


# shared among processes

SCRIPT = """
import sys
import torch
import distributed
from optim.muon import MUON, Muon
from tests.test_fit import train
from tests.test_muon import SETTINGS, StopAt, matrix

SHAPES = [(8, 8), (8, 24), (24, 8), (1, 9), (9, 1)]


def trained(world, dtype):
    parameters = [torch.nn.Parameter(matrix(*shape)) for shape in SHAPES]
    optimizer = Muon([{"params": parameters, **MUON}], 0.02, 0.2, dtype, world)
    for step in range(3):
        for number, parameter in enumerate(parameters):
            parameter.grad = matrix(*parameter.shape, seed=10 * step + number)
        optimizer.step()
    return [*parameters, *(state["second_moment"] for state in optimizer.state.values())]


folder, last = sys.argv[1], int(sys.argv[2])
if last:
    hooks = [StopAt("pause", last)] if last < 12 else []
    train(folder, hooks=hooks, **SETTINGS)
else:
    with distributed.start(None, "cpu") as world:
        for dtype in (torch.float32, torch.bfloat16):
            assert all(map(torch.equal, trained(world, dtype), trained(None, dtype)))
        print(f"<{world.size} the same>", flush=True)
"""


def launched(tmp_path: Path, processes: int, folder: str, last: int) -> str:
    """Output of SCRIPT on some processes."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    words = [*python(processes), str(script), str(tmp_path / folder), str(last)]
    outcome = run(words, PYTHONPATH=str(ROOT))
    assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    return outcome.stdout


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 3])
def test_the_update_is_the_same_bits_on_any_number_of_processes(tmp_path: Path, processes: int) -> None:
    found = launched(tmp_path, processes, "unused", 0)
    assert found.count(f"<{processes} the same>") == processes


@pytest.mark.slow
def test_two_processes_resume_to_the_bits_of_two_that_never_stopped(tmp_path: Path) -> None:
    launched(tmp_path, 2, "whole", 12)
    launched(tmp_path, 2, "parts", 5)
    launched(tmp_path, 2, "parts", 12)
    whole, parts = (leaves(load_checkpoint(tmp_path / name / "ckpt.pt")) for name in ("whole", "parts"))
    assert [name for name in differing(whole, parts) if not name.startswith("/args")] == []
