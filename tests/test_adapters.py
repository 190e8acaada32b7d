"""Low-rank adapters: what they compute, what is trained, and the ways out of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import config
from config.adaptation import Lora, lora_of
from errors import UserError
from models import fp8, make_model_from_args
from models.adapters import LoraLinear, adapter_roles, is_adapters, plain_weights, trained_parameters
from models.loss import linear_cross_entropy
from models.network import ADAPTER, FROZEN, roles_of
from models.variants import VARIANTS
from optim import initial
from optim.checkpoint import save_checkpoint
from optim.optimizers import make_optimizer
from tests import with_fp8
from tests.helpers import tiny_args, tiny_model, tokens

LORA = "lora:2:6"
CAUSAL = [name for name in VARIANTS if name != "pondernet"]  # whose exits are drawn
each_block = pytest.mark.parametrize("block", ["published", "modern"])
# as many matrices have adapters in the three layers, with attention's in one or two, three or four parts
ADAPTED = {"published": (12, 15), "modern": (18, 18)}


def adapted(model: str = "lncot", block: str = "published", **values: Any) -> Any:
    """A tiny model with adapters that are not zero, in training mode."""
    network = tiny_model(model, "--block", block, **{"adapt": LORA, **values})
    torch.manual_seed(3)
    with torch.no_grad():
        for name in adapter_roles(network):
            network.get_parameter(name).normal_(std=0.1)
    return network.train()


def state_of(network: Any, **values: Any) -> dict[str, Any]:
    """A checkpoint of it."""
    args = vars(tiny_args("lncot", init_from="start", adapt=LORA, **values))
    return {"model": network.state_dict(), "itr": 3, "args": args}


# what they compute


@each_block
@pytest.mark.parametrize("model", CAUSAL)
def test_merged_weights_give_the_same_logits(model: str, block: str) -> None:
    network = adapted(model, block).eval()
    plain = tiny_model(model, "--block", block)
    plain.load_state_dict(plain_weights(network.state_dict(), {"adapt": LORA}))
    x = tokens(2, 16)
    with torch.no_grad():
        logits = [each(x, get_logits=True)["logits"] for each in (network, plain)]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)


def test_a_layer_adds_the_scaled_product() -> None:
    layer = adapted().transformer["h_mid"][0].mlp.c_fc
    x = torch.randn(5, 32)
    expected = F.linear(x, layer.weight) + 3 * x @ layer.lora_a.T @ layer.lora_b.T
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_a_new_network_computes_what_it_would_without_them() -> None:
    plain = tiny_model("lncot")
    network = make_model_from_args(tiny_args("lncot", adapt=LORA)).eval()
    network.load_state_dict({**network.state_dict(), **plain.state_dict()})
    with torch.no_grad():
        assert torch.equal(network.run(tokens(2, 16)).states, plain.run(tokens(2, 16)).states)


@pytest.mark.parametrize("unit", ["block", "pass"])
def test_activation_checkpointing_changes_no_gradient(unit: str) -> None:
    gradients = []
    for checkpointing in ("none", unit):
        network = adapted(activation_checkpointing=checkpointing)
        network(tokens(2, 16), tokens(2, 16, seed=1))["loss"].backward()
        gradients.append([network.get_parameter(name).grad for name in sorted(adapter_roles(network))])
    assert all(map(torch.equal, *gradients))


# what is trained


@each_block
@pytest.mark.parametrize("model", VARIANTS)
def test_adapters_alone_take_gradients(model: str, block: str) -> None:
    network = adapted(model, block)
    network(tokens(2, 16), tokens(2, 16, seed=1))["loss"].backward()
    trained = {name for name, parameter in network.named_parameters() if parameter.grad is not None}
    assert trained == set(adapter_roles(network))
    assert len(trained) == 2 * ADAPTED[block][block == "published" and VARIANTS[model].split_qkv]


def test_roles_are_adapter_and_frozen() -> None:
    network = adapted()
    assert {role for name, role in roles_of(network).items() if not is_adapters(name)} == {FROZEN}
    assert {role for name, role in roles_of(network).items() if is_adapters(name)} == {ADAPTER}


@pytest.mark.parametrize("opt", ["adamw", "sgd", "adafactor", "muon", "lion"])
def test_optimisers_move_adapters_and_keep_nothing_of_what_is_frozen(opt: str) -> None:
    network = adapted()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = make_optimizer(network, tiny_args("lncot", opt=opt))
    network(tokens(2, 16), tokens(2, 16, seed=1))["loss"].backward()
    optimizer.step()
    moved = {name for name, value in network.state_dict().items() if not torch.equal(value, before[name])}
    named = {name for group in optimizer.param_groups for name in group["param_names"]}
    assert moved == named == set(adapter_roles(network))


def test_with_mup_the_rates_of_what_sums_over_the_width_fall_with_it() -> None:
    network = adapted(mup_base_width=8)
    optimizer = make_optimizer(network, tiny_args("lncot", mup_base_width=8))
    rates = {}
    for group in optimizer.param_groups:
        rates |= dict.fromkeys(group["param_names"], group.get("rate", 1.0))
    assert {rate for name, rate in rates.items() if name.endswith("lora_a")} == {0.25}
    assert {rate for name, rate in rates.items() if name.endswith("lora_b")} == {1.0}


def test_the_decay_of_adapters_is_the_optimisers() -> None:
    for decayed in ("matrices", "all"):
        args = tiny_args("lncot", weight_decay=0.3, decayed=decayed)
        assert [group["weight_decay"] for group in make_optimizer(adapted(), args).param_groups] == [0.3]


@pytest.mark.parametrize("softcap", [None, 15.0])
def test_the_loss_makes_no_gradient_of_a_frozen_head(softcap: float | None) -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(6, 8, requires_grad=True), torch.randn(11, 8)
    found, held = [], []
    for is_trained in (False, True):
        head = weight.clone().requires_grad_(is_trained)
        loss, _, _ = linear_cross_entropy(hidden, head, torch.arange(6), softcap=softcap)
        held.append([each is not None and each.shape == head.shape for each in loss.grad_fn.saved_tensors])
        found.append(torch.autograd.grad(loss, hidden)[0])
    assert torch.equal(*found)
    assert [sum(each) for each in held] == [0, 1]  # gradients are made in the forward pass


def test_useful_operations_leave_out_the_gradients_of_frozen_weights() -> None:
    shares = [
        tiny_model("base", adapt=adapt, sequence_length=1, block=block).flops_per_token()
        for block in ("published", "modern")
        for adapt in (LORA, None)
    ]
    assert 2 / 3 < shares[0] / shares[1] < 0.68 and 2 / 3 < shares[2] / shares[3] < 0.68


@pytest.mark.parametrize("recipe", [fp8.TENSORWISE, fp8.ROWWISE])
def test_in_fp8_a_layer_is_near_and_its_frozen_weight_has_no_gradient(
    recipe: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch, "_scaled_mm", with_fp8.scaled_mm)
    monkeypatch.setattr(fp8, "SMALLEST_SIDE", 16)
    network = adapted()
    layer = network.transformer["h_mid"][0].mlp.c_fc
    x, grad = torch.randn(16, 32, requires_grad=True), torch.randn(16, 128)
    results = []
    for _ in range(2):
        y = layer(x)
        results.append((y, *torch.autograd.grad(y, (x, layer.lora_a, layer.lora_b), grad.to(y.dtype))))
        fp8.convert(network, recipe)
    assert isinstance(layer, LoraLinear) and not layer.weight.requires_grad
    for exact, found in zip(*results, strict=True):
        assert (found.float() - exact).norm() < 0.1 * exact.norm()


# starts


def test_a_start_need_not_have_adapters(tmp_path: Path) -> None:
    plain = tiny_model("lncot")
    save_checkpoint(tmp_path / "ckpt.pt", {"model": plain.state_dict(), "itr": 1})
    network = make_model_from_args(tiny_args("lncot", adapt=LORA))
    initial.load(network, tmp_path / "ckpt.pt")
    assert torch.equal(network.lm_head.weight, plain.lm_head.weight)
    second = [name for name in adapter_roles(network) if name.endswith("lora_b")]
    assert second and not any(network.get_parameter(name).any() for name in second)


@pytest.mark.parametrize("adapt", [None, "lora:3", LORA])
def test_the_adapters_of_a_start_are_merged(tmp_path: Path, adapt: str | None) -> None:
    before = adapted().eval()
    save_checkpoint(tmp_path / "ckpt.pt", state_of(before))
    network = make_model_from_args(tiny_args("lncot", adapt=adapt)).eval()
    initial.load(network, tmp_path / "ckpt.pt")
    with torch.no_grad():
        states = [each.run(tokens(2, 16)).states for each in (network, before)]
    torch.testing.assert_close(*states, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("what", "said"), [("args", "no setting --adapt"), ("half", "is incomplete")])
def test_a_start_whose_adapters_cannot_be_merged_is_refused(tmp_path: Path, what: str, said: str) -> None:
    state = state_of(adapted())
    if what == "args":
        del state["args"]["adapt"]
    else:
        del state["model"]["transformer.h_mid.0.mlp.c_fc.lora_b"]
    save_checkpoint(tmp_path / "ckpt.pt", state)
    with pytest.raises(UserError, match=f"^--init_from .*{said}[^\n]*$"):
        initial.load(tiny_model("lncot"), tmp_path / "ckpt.pt")


# flags


@pytest.mark.parametrize(
    ("text", "rank", "scale", "kept"),
    [("lora:8", 8, 1, "lora:8"), ("lora:4:16", 4, 4, "lora:4:16"), ("lora:4:4.0", 4, 1, "lora:4")],
)
def test_rank_and_alpha(text: str, rank: int, scale: float, kept: str) -> None:
    given = config.parse_args(["--init_from", "x", "--adapt", text]).adapt
    assert (given, lora_of(given).rank, lora_of(given).scale) == (kept, rank, scale)


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as ended:
        config.parse_args(words)
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    return line


@pytest.mark.parametrize(
    "text", ["lora", "lora:", "lora:0", "lora:-1", "lora:8:0", "lora:8:nan", "lora:x", "8"]
)
def test_what_is_no_adapter_is_refused(capsys: pytest.CaptureFixture[str], text: str) -> None:
    assert "--adapt must be lora:RANK or" in refused(capsys, "--init_from", "x", "--adapt", text)


def test_adapters_of_random_weights_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "give them by --init_from" in refused(capsys, "--adapt", "lora:8")


def test_a_rank_that_is_no_lower_than_a_matrix_is_refused() -> None:
    with pytest.raises(
        UserError, match=r"^--adapt lora:32: the rank must be below 32, .* attn.c_attn [^\n]*$"
    ):
        make_model_from_args(tiny_args("lncot", adapt="lora:32"))


def test_the_first_lines_say_how_many_numbers_are_trained() -> None:
    network = adapted()
    assert f"of which {trained_parameters(network):,} of adapters" in network.describe()


def test_the_scale_is_alpha_over_the_rank() -> None:
    assert Lora(4, 2.0).scale == 0.5
