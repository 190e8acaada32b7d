"""Lion, muP, and the schedules of the training library: resumed to the same bits, extended, refused."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import config
from data.bins import TokenWindows
from data.token_source import TokenSource
from errors import UserError
from models import make_model_from_args
from models.cache import GenerationCache
from models.network import GATE, HEAD, MATRIX, ROUTER, roles_of
from models.variants import VARIANTS
from optim.checkpoint import load_checkpoint
from optim.fit import fit
from optim.lion import Lion
from optim.objectives import NextToken
from optim.optimizers import make_optimizer
from optim.schedules import LIBRARY, Schedule, make_scheduler
from optim.selftest import differing, leaves
from tests.command_lines import refused
from tests.helpers import same, tiny_args, tiny_model, tokens
from tests.programs import ROOT, python, run
from tests.test_fit import Numbers, Squared, StopAt, train, without_time

SETTINGS: dict[str, Any] = {
    "opt": "lion",
    "lr": 0.002,
    "beta2": 0.99,
    "weight_decay": 0.2,
    "scheduler": "cosine",
    "warmup_steps": 4,
}


# lion


def test_the_step_of_lion_is_the_rate_whatever_the_gradient() -> None:
    parameter = torch.nn.Parameter(torch.ones(2, 3))
    parameter.grad = torch.tensor([[1e-9, -1e-3, 5.0], [-1e6, 0.0, 1.0]])
    before = parameter.detach().clone()
    Lion([parameter], lr=0.5).step()
    assert torch.equal(before - parameter, 0.5 * parameter.grad.sign())


def test_a_parameter_without_gradient_has_no_state_of_lion() -> None:
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = Lion([parameter], lr=0.5, weight_decay=0.5)
    optimizer.step()
    assert torch.equal(parameter, torch.ones(2)) and not optimizer.state


@pytest.mark.parametrize("values", [{"betas": (0.9, 1.0)}, {"betas": (-0.1, 0.9)}, {"lr": -1.0}])
def test_lion_refuses_values_that_it_cannot_have(values: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"^lion: .*not"):
        Lion([torch.nn.Parameter(torch.ones(2))], **values)


@pytest.mark.parametrize("scheduler", LIBRARY)
def test_a_paused_training_ends_with_the_bits_of_one_that_never_stopped(
    tmp_path: Path, scheduler: str
) -> None:
    settings = {**SETTINGS, "scheduler": scheduler}
    whole = train(tmp_path / "whole", **settings)
    train(tmp_path / "parts", hooks=[StopAt("pause", 5)], **settings)
    parts = train(tmp_path / "parts", **settings)
    states = [load_checkpoint(tmp_path / name / "ckpt.pt") for name in ("whole", "parts")]
    for state in states:
        del state["args"]
    kept = leaves(states[0])
    assert any(name.endswith("/exp_avg") for name in kept)
    assert differing(kept, leaves(states[1])) == []
    assert without_time(whole) == without_time(parts)


SCRIPT = """
import sys
from tests.test_fit import StopAt, train
from tests.test_library_optimisers import SETTINGS

folder, last = sys.argv[1], int(sys.argv[2])
train(folder, hooks=[StopAt("pause", last)] if last < 12 else [], **SETTINGS)
"""


def launched(tmp_path: Path, processes: int, *calls: tuple[str, int]) -> dict[str, Any]:
    """What the last checkpoint has, of trainings in a folder up to a step."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    for folder, last in calls:
        words = [*python(processes), str(script), str(tmp_path / folder), str(last)]
        outcome = run(words, PYTHONPATH=str(ROOT))
        assert outcome.returncode == 0, outcome.stdout + outcome.stderr
    state = load_checkpoint(tmp_path / calls[-1][0] / "ckpt.pt")
    del state["args"]
    return leaves(state)


@pytest.mark.slow
def test_two_processes_resume_lion_to_the_bits_of_two_that_never_stopped(tmp_path: Path) -> None:
    whole = launched(tmp_path, 2, ("whole", 12))
    assert differing(whole, launched(tmp_path, 2, ("parts", 5), ("parts", 12))) == []


# schedules


def scheduled(scheduler: str, iterations: int = 20, warmup: int = 5, lr: float = 0.01) -> Schedule:
    args = config.add_defaults(
        {"scheduler": scheduler, "iterations": iterations, "warmup_steps": warmup, "lr": lr}
    )
    return make_scheduler(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), args)


def rates(schedule: Schedule, steps: int) -> list[float]:
    """Used at the next steps."""
    found = []
    for _ in range(steps):
        found.append(schedule.get_last_lr()[0])
        schedule.step()
    return found


@pytest.mark.parametrize("taken", [2, 12])
@pytest.mark.parametrize("scheduler", LIBRARY)
def test_a_training_that_rejoins_has_the_rates_of_one_planned_so_long(scheduler: str, taken: int) -> None:
    short, long = scheduled(scheduler), scheduled(scheduler, 50)
    rates(short, taken)
    long.load_state_dict(short.state_dict(), "rejoin")
    assert rates(long, 50 - taken) == rates(scheduled(scheduler, 50), 50)[taken:]


@pytest.mark.parametrize("scheduler", LIBRARY)
def test_a_training_that_continues_has_no_step_in_its_rates(scheduler: str) -> None:
    short, long = scheduled(scheduler), scheduled(scheduler, 50)
    before = rates(short, 12)[-1]
    long.load_state_dict(short.state_dict(), "continue")
    after = rates(long, 38)
    assert after[0] == pytest.approx(before, rel=0.05) and (after[-1] < 1e-3 or scheduler == "constant")


def test_an_extension_without_its_way_is_refused() -> None:
    with pytest.raises(UserError, match="--iterations 50 is more than the 20"):
        scheduled("cosine", 50).load_state_dict(scheduled("cosine").state_dict())


def test_a_warm_up_that_is_longer_than_the_run_is_told() -> None:
    line = scheduled("cosine", 20, 30).describe()
    assert line.endswith("the warm-up of 30 steps is longer than the run")


def test_rows_tell_the_rate_of_each_update() -> None:
    settings = {**SETTINGS, "opt": "adamw", "log_freq": 1}
    rows = fit(Squared(), Numbers(), steps=12, batch_size=4, device="cpu", **settings).rows
    expected = rates(scheduled("cosine", 12, 4, SETTINGS["lr"]), 12)
    assert [row["lr"] for row in rows if row["kind"] == "train"] == pytest.approx(expected)


# muP

MODELS = [(model, "published") for model in VARIANTS]
MODELS += [(model, "modern") for model in ("base", "lncot", "adm")]


def flags_of_mup(model: str, block: str) -> list[str]:
    loops = ["--n_layer_begin", "0", "--n_layer_end", "0"] if model == "base" else []
    return [*loops, "--block", block, "--depth_embedding", "learned", "--mup_base_width", "16"]


@pytest.mark.parametrize(("model", "block"), MODELS)
def test_rates_of_mup_fall_where_weights_sum_over_the_width(model: str, block: str) -> None:
    args = tiny_args(model, *flags_of_mup(model, block), "--weight_decay", "0.1")
    network = make_model_from_args(args)
    roles, seen = roles_of(network), set()
    for group in make_optimizer(network, args).param_groups:
        for name in group["param_names"]:
            falls = roles[name] in (MATRIX, ROUTER)
            assert group.get("rate", 1.0) == (0.5 if falls else 1.0)
            assert group["weight_decay"] == (0.2 if falls else 0.1 * (roles[name] in (HEAD, GATE)))
            seen.add(name)
    assert seen == {name for name, _ in network.named_parameters()}


@pytest.mark.parametrize(("model", "block"), MODELS)
def test_at_its_base_width_mup_changes_no_initial_weight(model: str, block: str) -> None:
    found = []
    for base in (["--mup_base_width", "32"], []):
        torch.manual_seed(0)
        flags = flags_of_mup(model, block)[:-2]
        found.append(make_model_from_args(tiny_args(model, *flags, *base)))
    assert same(*(dict(network.state_dict()) for network in found))


@pytest.mark.parametrize("block", ["published", "modern"])
def test_both_ways_of_attention_have_the_scale_of_mup(block: str) -> None:
    logits = []
    for attention in ("fast", "reference"):
        network = tiny_model("lncot", *flags_of_mup("lncot", block), attention=attention)
        logits.append(network(tokens(2, 16), get_logits=True)["logits"])
    torch.testing.assert_close(logits[0], logits[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("block", ["published", "modern"])
def test_generation_from_a_cache_has_the_scale_of_mup(block: str) -> None:
    network = tiny_model("lncot", *flags_of_mup("lncot", block))
    words = tokens(2, 16)
    cache, found = GenerationCache(network.settings, 2), []
    with torch.no_grad():
        for position in range(16):
            cache.begin(torch.full((2, 1), position), position + 1, ragged=False)
            found.append(network(words[:, position : position + 1], get_logits=True, cache=cache)["logits"])
        whole = network(words, get_logits=True)["logits"]
    torch.testing.assert_close(torch.cat(found, dim=1), whole, rtol=1e-4, atol=1e-5)


def test_the_loss_is_that_of_the_logits_of_mup() -> None:
    network = tiny_model("lncot", *flags_of_mup("lncot", "published"))
    out = network(tokens(2, 16), targets=tokens(2, 16, seed=1), get_logits=True)
    expected = torch.nn.functional.cross_entropy(out["logits"].flatten(0, 1), tokens(2, 16, seed=1).flatten())
    torch.testing.assert_close(out["loss"], expected)


def test_a_training_by_mup_resumes_to_the_same_bits(tmp_path: Path) -> None:
    states = []
    for name, stops in (("whole", [12]), ("parts", [5, 12])):
        for last in stops:
            torch.manual_seed(0)
            network = make_model_from_args(tiny_args("lncot", *flags_of_mup("lncot", "published")))
            windows = TokenWindows(np.arange(5000, dtype=np.uint16) % 50, 16, 64)
            hooks = [StopAt("pause", last)] if last < 12 else []
            settings = {**SETTINGS, "objective": NextToken(network), "source": TokenSource(windows, 0)}
            train(tmp_path / name, hooks=hooks, **settings)
        states.append(load_checkpoint(tmp_path / name / "ckpt.pt"))
        del states[-1]["args"]
    assert differing(*map(leaves, states)) == []


def test_a_network_of_mup_is_refused_by_other_optimisers() -> None:
    network = make_model_from_args(tiny_args("base", *flags_of_mup("base", "published")))
    with pytest.raises(UserError, match="trains with --opt adamw or lion, not with sgd"):
        make_optimizer(network, tiny_args("base", "--opt", "sgd"))


# the page


def test_the_example_of_the_page_trains() -> None:
    (block,) = re.findall(
        r"```python\n(.*?)```", (ROOT / "docs" / "library-optimisers.md").read_text(), re.DOTALL
    )
    names: dict[str, Any] = {}
    exec(block, names)
    assert names["rows"][-1]["loss"] < 0.9 * names["rows"][0]["loss"]


# refused


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--opt", "lion", "--beta2", "1"], "--beta1 and --beta2 must be below 1"),
        (["--opt", "lion", "--beta1", "1.5"], "--beta1 must be at most 1"),
        (["--opt", "lion", "--beta1", "-0.1"], "--beta1 must be at least 0"),
        (["--opt", "lyon"], "did you mean lion?"),
        (["--opt", "adafactor", "--adafactor_eps", "0"], "--adafactor_eps must be at least"),
        (["--scheduler", "cosine", "--warmup_steps", "-1"], "--warmup_steps must be at least 0"),
        (["--scheduler", "step"], "--scheduler must be one of cos, linear,"),
        (["--mup_base_width", "0"], "--mup_base_width must be at least 1"),
        (["--mup_base_width", "64.5"], "--mup_base_width"),
        (["--mup_base_width", "64", "--opt", "muon"], "--mup_base_width is for --opt adamw and lion"),
        (["--mup_base_width", "64", "--opt", "adafactor"], "not for adafactor"),
        (["--mup_base_width", "64", "--opt", "sgd"], "not for sgd"),
    ],
)
def test_bad_settings_get_a_line(flags: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    (told,) = [text for text in refused(capsys, *flags) if "error" in text]
    assert line in told
