"""Trainings in shards (--shard): what every other training promises."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
import torch.distributed as dist
from torch import nn

from distributed import shard
from distributed.world import World
from optim.selftest import differing
from tests.emulated_cuda import emulated_cuda
from tests.emulated_tensors import DEVICE
from tests.helpers import tiny_args
from tests.programs import command, final_state, folder, metrics, start, train, trained, wait_for_step

SETTINGS: dict[str, Any] = {"iterations": 24, "log_freq": 1, "eval_freq": 8, "save_checkpoint_freq": 6}
ADAPTIVE: dict[str, Any] = {**SETTINGS, "acc_steps": 4}


def losses(results: Path) -> list[float]:
    return [row.get("loss", row.get("val_loss")) for row in metrics(results)]


def form(value: Any) -> Any:
    """Of nested values, all but the numbers in tensors."""
    if isinstance(value, torch.Tensor):
        return tuple(value.shape), str(value.dtype), str(value.device)
    if isinstance(value, dict):
        return {key: form(item) for key, item in value.items()}
    return [form(item) for item in value] if isinstance(value, (list, tuple)) else type(value).__name__


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """An adaptive model, whose routers some processes do not use in a step, on four processes."""
    found = {}
    for how in ("none", "optimizer", "full"):
        found[how] = trained(tmp_path_factory.mktemp(how), 4, shard=how, **ADAPTIVE)
    return found


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CoTFormer of modern blocks, fully sharded, on two."""
    return trained(tmp_path_factory.mktemp("two"), 2, **MODERN)


MODERN: dict[str, Any] = {
    **SETTINGS,
    "shard": "full",
    "model": "lncot",
    "block": "modern",
    "dropout": None,
}


@pytest.mark.slow
def test_a_sharded_optimiser_takes_the_steps_of_a_whole_one_to_the_bit(four: dict[str, Path]) -> None:
    assert differing(final_state(four["none"]), final_state(four["optimizer"])) == []


def sharded_adamw(module: nn.Module) -> Any:
    return shard.make_adamw([{"params": list(module.named_parameters())}], "optimizer", lr=1e-2, fused=True)


@pytest.fixture
def alone() -> Iterator[None]:
    """A process group of one."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_sharded_optimiser_that_resumes_on_a_gpu_has_its_state_there_and_once(alone: None) -> None:
    with emulated_cuda():
        module = nn.Linear(4, 4).to("cuda")
        optimizer, resumed = sharded_adamw(module), sharded_adamw(module)
        module(torch.ones(2, 4, device="cuda")).sum().backward()
        optimizer.step()
        shard.load_state(resumed, shard.state_of(optimizer, World(DEVICE)))
        held = [value for values in resumed.optim.state.values() for value in values.values()]
    assert {value.device for value in held} == {DEVICE} and len(held) == 6
    assert not resumed.state


class Loss(NamedTuple):
    mean: torch.Tensor


class Routed(nn.Module):
    """Of three routers one decides, one is asked in vain, and one is not asked."""

    def __init__(self) -> None:
        super().__init__()
        self.units = [nn.Linear(4, 4)]
        self.block = self.units[0]
        self.decides, self.in_vain, self.unused = (nn.Linear(4, 1, bias=False) for _ in range(3))

    def run(self, inputs: torch.Tensor) -> torch.Tensor:
        states = self.block(inputs)
        return states * self.decides(states) * (self.in_vain(states) * 0 + 1)


class Summed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.network = Routed()

    def forward(self, batch: torch.Tensor) -> Any:
        return Loss(self.network.run(batch).sum())


def test_only_weights_that_no_process_has_used_take_no_step(alone: None) -> None:
    routers = ["decides.weight", "in_vain.weight", "unused.weight"]
    model = shard.ShardedObjective(Summed(), routers, World(torch.device("cpu")))
    for _ in range(2):
        model(torch.ones(2, 4)).mean.backward()
        with_gradient = shard.with_gradient(model)
        taken = [
            name for name, p in model.network.named_parameters() if any(p is each for each in with_gradient)
        ]
        assert taken == ["block.weight", "block.bias", "decides.weight", "in_vain.weight"]
        assert not shard.whole(model.network.in_vain.weight.grad).any()
        model.zero_grad()


@pytest.mark.slow
def test_a_fully_sharded_training_has_the_losses_of_one_that_is_not(four: dict[str, Path]) -> None:
    assert losses(four["full"]) == pytest.approx(losses(four["none"]), abs=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["optimizer", "full"])
def test_checkpoints_have_the_form_of_others(four: dict[str, Path], how: str) -> None:
    states = [torch.load(folder(four[each]) / "ckpt.pt", weights_only=True) for each in ("none", how)]
    forms = [form({**state, "args": None}) for state in states]
    assert forms[0] == forms[1]


@pytest.mark.slow
def test_a_killed_sharded_training_ends_with_the_same_bits(two: Path, tmp_path: Path) -> None:
    process = start(command(tmp_path, 2, **MODERN))
    wait_for_step(tmp_path, 15, process)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    assert train(tmp_path, 2, **MODERN).returncode == 0
    assert differing(final_state(two), final_state(tmp_path)) == []


@pytest.mark.slow
@pytest.mark.parametrize(("how", "processes"), [("none", 1), ("optimizer", 2)])
def test_checkpoints_are_resumed_in_other_shards(two: Path, tmp_path: Path, how: str, processes: int) -> None:
    shutil.copytree(two, tmp_path, dirs_exist_ok=True)
    for path in folder(tmp_path).glob("*"):
        if path.name not in ("ckpt_18.pt", "metrics.jsonl"):
            path.unlink()
    outcome = train(tmp_path, processes, **{**MODERN, "shard": how})
    assert outcome.returncode == 0 and "at step 18" in outcome.stderr + outcome.stdout, outcome.stderr
    assert losses(tmp_path)[-6:] == pytest.approx(losses(two)[-6:], abs=1e-4)


@pytest.mark.slow
def test_weights_of_any_training_begin_a_sharded_one(four: dict[str, Path], tmp_path: Path) -> None:
    path = folder(four["none"]) / "ckpt.pt"
    settings = {**ADAPTIVE, "acc_steps": 2, "iterations": 1, "lr": 0, "init_from": path, "shard": "full"}
    trained(tmp_path, 2, **settings)
    then, now = (
        torch.load(each, weights_only=True)["model"] for each in (path, folder(tmp_path) / "ckpt.pt")
    )
    assert all(torch.equal(then[name], now[name]) for name in then)


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (("--shard", "full", "--opt", "muon"), "--opt adamw"),
        (("--shard", "optimizer", "--objective", "multi_token"), "--objective next_token"),
        (("--shard", "optimizer", "--adapt", "lora:2", "--init_from", "x"), "without --adapt"),
        (("--shard", "full", "--sample_every", "5"), "only with --sample_every 0"),
        (("--shard", "full", "--layer_norms", "5"), "only with --layer_norms 0"),
        (("--shard", "full", "--dtype", "float16"), "not with float16"),
        (("--shard", "some"), "--shard"),
    ],
)
def test_what_has_no_shards_is_refused(words: tuple[Any, ...], named: str, capsys: Any) -> None:
    with pytest.raises(SystemExit) as refused:
        tiny_args("lncot", *words)
    lines = capsys.readouterr().err.strip().splitlines()
    assert refused.value.code == 2 and len(lines) == 1 and named in lines[0]
