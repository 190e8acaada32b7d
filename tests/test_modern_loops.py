"""Modern blocks that repeat: what depth counts, and each row of the table against the plain way."""

from __future__ import annotations

from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from config.parse import parse_args
from data.bins import TokenWindows
from data.token_source import TokenSource
from models import make_model_from_args
from models.macs import count_macs, training_flops_per_token
from models.network import EMBEDDING, HEAD, MATRIX, RESIDUAL_SCALAR, ROUTER, VALUE_EMBEDDING, roles_of
from models.settings import ModelSettings
from models.transformer import Transformer
from models.variants import VARIANTS
from optim.checkpoint import load_checkpoint
from optim.generation import Session
from optim.hooks import Hook
from optim.objectives import NextToken
from optim.optimizers import make_optimizer
from optim.selftest import differing, leaves
from recipes import cotformer
from recipes.horizon import horizon, scaling_parameters
from tests.helpers import tiny_args, tokens
from tests.test_fit import StopAt, train
from tests.test_macs import counted_by_torch
from tests.test_modern import LONG, assert_close, modern, outcome
from tests.test_muon import SETTINGS

ROWS = [name for name, variant in VARIANTS.items() if variant.loop]
FIXED = [name for name in ROWS if not VARIANTS[name].adaptive]
RULES = ("layer", "pass")
every_row = pytest.mark.parametrize(("name", "rule"), list(product(ROWS, RULES)))


def settings_of(name: str, **values: Any) -> ModelSettings:
    """1 layer, 2 layers three times, 1 layer."""
    args = tiny_args(name, **{"block": "modern", "window_pattern": "SSL", "n_layer": 4, **values})
    return ModelSettings.from_args(args)


def looped(name: str, rule: str, **values: Any) -> Transformer:
    return modern(**{"model": name, "depth_index": rule, "depth_embedding": "linear_learned", **values})


# what depth counts


@pytest.mark.parametrize(
    ("name", "rule", "layers", "value_layers", "wide"),
    [
        ("base", "pass", [0, 1, 2, 3], [1, 3], [2, 3]),
        ("cot", "layer", [0, 1, 2, 3], [1, 3], [2, 3]),
        ("cot", "pass", [0, 1, 2, 1, 2, 1, 2, 3], [1, 3], [2, 5, 7]),
        ("pondernet", "pass", [0, 1, 2, 3, 1, 2, 3, 1, 2, 3], [1, 2, 3], [2, 5, 8, 9]),
    ],
)
def test_scalars_windows_and_value_embeddings_follow_depth(
    name: str, rule: str, layers: list[int], value_layers: list[int], wide: list[int]
) -> None:
    settings = settings_of(name, depth_index=rule)
    assert settings.layer_of == layers and settings.value_layers == value_layers
    assert [depth for depth, window in enumerate(settings.windows) if window == 16] == wide
    assert len(looped(name, rule).resid_lambdas) == len(layers)


@every_row
def test_each_run_of_a_layer_has_the_depth_of_its_place(name: str, rule: str) -> None:
    settings = settings_of(name, depth_index=rule)
    exits, depths = settings.variant.exits_each_pass, list(settings.depths("h_begin", 1))
    for number in range(1, 4):
        depths += settings.depths("h_mid", number)
        if exits or number == 3:
            depths += settings.depths("h_end", number if exits else 1)
    layers = [settings.layer_of[depth] for depth in depths]
    assert layers == settings_of(name, depth_index="pass").layer_of
    assert rule == "layer" or depths == list(range(len(settings.layer_of)))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", FIXED)
def test_every_parameter_has_a_gradient(name: str, rule: str) -> None:
    model = looped(name, rule, depth_embedding=None)
    model(tokens(2, 13, vocab=60), targets=tokens(2, 13, seed=1, vocab=60))["loss"].backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []


# every row against the plain way


@pytest.mark.parametrize("name", ROWS)
def test_fast_attention_is_the_reference(name: str) -> None:
    given = {"model": name, "depth_index": "pass", "depth_embedding": "learned", "n_kv_head": 2}
    ways = [outcome(LONG, torch.float64, attention=way, **given) for way in ("fast", "reference")]
    assert_close(*ways, 1e-10)


@every_row
def test_activation_checkpointing_changes_no_bit(name: str, rule: str) -> None:
    given = {"model": name, "depth_index": rule}
    plain, by_pass, by_block = [
        outcome(13, activation_checkpointing=how, **given) for how in ("none", "pass", "block")
    ]
    for other in (by_pass, by_block):
        assert all(torch.equal(*pair) for pair in zip(plain, other, strict=True))


@every_row
def test_tokens_in_pieces_give_the_logits_of_the_whole(name: str, rule: str) -> None:
    """Also beyond the trained length; PonderNet's exits are drawn."""
    if VARIANTS[name].exits_each_pass:
        pytest.skip("exits are drawn")
    model = looped(name, rule, n_kv_head=2, sequence_length=16, routing="threshold").eval()
    idx = tokens(2, 40, vocab=60)
    session = Session(model, 2, torch.device("cpu"), longest=40)
    with torch.no_grad():
        whole = model(idx, get_logits=True)
    if VARIANTS[name].routes:
        assert whole["active"][0] == 40 and 0 < whole["active"][2] < whole["active"][1] < 40
    for begin, end in [(0, 5), (5, 6), (6, 19), (19, 20), (20, 40)]:
        found = session.extend(idx[:, begin:end].tolist())
        assert (found - whole["logits"][:, end - 1]).abs().max() < 2e-5, (begin, end)


@every_row
def test_later_tokens_change_nothing_before_them(name: str, rule: str) -> None:
    model = looped(name, rule, routing="threshold").eval()
    one = tokens(2, 16, vocab=60)
    other = one.clone()
    other[:, 9:] = (other[:, 9:] + 7) % 60
    logits = []
    for idx in (one, other):
        torch.manual_seed(0)
        with torch.no_grad():
            logits.append(model(idx, get_logits=True)["logits"])
    assert (logits[0] - logits[1])[:, :9].abs().max() < 1e-5 < (logits[0] - logits[1])[:, 9:].abs().max()


def test_tokens_that_take_part_have_their_own_embeddings() -> None:
    """By capacity: the compact model computes what the gathered tokens would alone, were they a sequence."""
    model = looped("adm", "pass", training_length_factor=[0.5, 0.25])
    idx = tokens(1, 16, vocab=60)
    hidden = model.run(idx)
    columns = hidden.routing[1][0]
    stack = model._stack(idx, model.transformer["wte"](idx), 16, "h_mid", 2, columns)
    assert stack.inputs[0] is not None and torch.equal(stack.inputs[0].tokens, idx[:, columns[0]])
    assert torch.equal(stack.inputs[0].embeddings, model.transformer["wte"](idx)[:, columns[0]])


def test_halting_that_has_not_begun_leaves_an_ordinary_model() -> None:
    """In the first pass keys are made of the states as they are."""
    halting, plain = [looped(name, "layer", n_repeat=1) for name in ("but_halting", "but_full_depth")]
    plain.load_state_dict(halting.state_dict(), strict=False)
    idx = tokens(2, 13, vocab=60)
    without = [key for key in halting.state_dict() if key.startswith(("depth_", "depth_emb"))]
    assert without
    with torch.no_grad():
        halting.depth_emb.embs.weight.zero_()
        assert torch.equal(halting.run(idx).states, plain.run(idx).states)


def test_rows_that_pad_the_head_have_no_probability_at_any_exit() -> None:
    model = looped("pondernet", "pass")
    model(tokens(2, 8, vocab=60), targets=tokens(2, 8, seed=1, vocab=60))["loss"].backward()
    gradient = model.head[1].grad
    assert gradient.shape[0] == 64 and gradient[:60].any(1).all() and not gradient[60:].any()


# work


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("name", "factors"),
    [*[(name, None) for name in ROWS if name != "pondernet"], ("adm", [0.5, 0.25]), ("adm", [0.6, 0.0])],
)
def test_closed_form_is_what_torch_counts_of_the_model_itself(
    name: str, factors: list[float] | None, rule: str
) -> None:
    if VARIANTS.get(name, VARIANTS["base"]).policy == "masked":
        factors = [1.0, 1.0]
    settings, counted = counted_by_torch(
        name, factors, 16, block="modern", depth_index=rule, n_layer=4, n_kv_head=2
    )
    assert count_macs(settings, 16, factors) + 15 * 32 * 64 == counted


def test_work_in_windows_is_that_of_each_depth() -> None:
    """Layers 1 and 2 see 8 and 16 of 16 positions back in all passes, or change places with each pass."""
    given = {"n_kv_head": 4, "n_layer": 4, "n_repeat": 2}
    by_rule = {}
    for rule, pattern in [("layer", "LSLL"), ("pass", "LSLLSL")]:
        settings = settings_of("cot", depth_index=rule, window_pattern=pattern, **given)
        by_rule[rule] = count_macs(settings, 16) - count_macs(
            settings_of("cot", depth_index=rule, window_pattern="L", **given), 16
        )
    # with the keys of one pass, then of two, each 8 short
    assert by_rule["layer"] == by_rule["pass"] == -2 * 32 * 16 * (8 + 2 * 8)
    settings = settings_of("cot", **given, window_pattern="LSLL")
    other = (settings.n_embd * settings.table_rows) * 15
    assert training_flops_per_token(settings) == 6 * (count_macs(settings, 16) + other) / 16


# training


@pytest.mark.parametrize("name", ROWS)
def test_every_parameter_lands_in_one_group_and_a_step_of_muon_moves_it(name: str) -> None:
    args = tiny_args(name, "--opt", "muon", "--depth_embedding", "learned", block="modern")
    torch.manual_seed(0)
    model = make_model_from_args(args)
    optimizer = make_optimizer(model, args)
    names = sorted(key for group in optimizer.param_groups for key in group["param_names"])
    assert names == sorted(key for key, _ in model.named_parameters())
    before = model.head[1].detach().clone()
    model(tokens(2, 8), targets=tokens(2, 8, seed=1))["loss"].backward()
    optimizer.step()
    assert all(bool(parameter.isfinite().all()) for parameter in model.parameters())
    assert not torch.equal(before, model.head[1])


@pytest.mark.parametrize(
    ("name", "parameter", "role"),
    [
        ("lncot", "lm_head.weight", HEAD),
        ("lncot", "depth_emb.embs.weight", EMBEDDING),
        ("lncot", "resid_lambdas", RESIDUAL_SCALAR),
        ("lncot", "value_embeds.2.weight", VALUE_EMBEDDING),
        ("lncot", "transformer.h_mid.0.attn.c_q.weight", MATRIX),
        ("lncot", "transformer.h_end.0.attn.ve_gate.weight", MATRIX),
        ("adm", "transformer.mod.1.mod_router.weight", ROUTER),
        ("pondernet", "to_logits.1.weight", HEAD),
        ("pondernet", "to_halt_logits.2.weight", ROUTER),
        ("pondernet", "to_halt_logits.2.bias", ROUTER),
        ("but_halting", "depth_predictor._gate.0.bias", ROUTER),
        ("but_halting", "depth_predictor._gate.2.weight", ROUTER),
    ],
)
def test_roles(name: str, parameter: str, role: str) -> None:
    args = tiny_args(name, block="modern", depth_embedding="learned")
    assert roles_of(make_model_from_args(args))[parameter] == role


@pytest.mark.parametrize(
    ("name", "parameter", "std"),
    [
        ("adm", "transformer.mod.1.mod_router.weight", 0.02),
        ("lncot", "depth_emb.embs.weight", 0.02),
        ("pondernet", "to_logits.1.weight", 0.001),
        ("pondernet", "to_halt_logits.0.weight", 0.02),
        ("pondernet", "to_halt_logits.0.bias", 0.0),
        ("but_halting", "depth_predictor._gate.0.weight", 0.02),
        ("but_halting", "depth_predictor._gate.2.weight", 0.0),
        ("lncot", "transformer.h_mid.0.mlp.c_fc.weight", 128**-0.5),
        ("lncot", "transformer.h_mid.0.mlp.c_proj.weight", 0.0),
    ],
)
def test_parameters_start_as_the_table_says(name: str, parameter: str, std: float) -> None:
    torch.manual_seed(0)
    args = tiny_args(name, block="modern", n_embd=128, depth_embedding="learned")
    weight = dict(make_model_from_args(args).named_parameters())[parameter].detach()
    assert weight.square().mean().sqrt().item() == pytest.approx(std, rel=0.25)


def test_the_horizon_counts_each_parameter_once_and_all_runs_of_a_layer() -> None:
    plain, repeated = settings_of("base", n_layer=12), settings_of("cot", n_layer=12, n_repeat=3)
    assert scaling_parameters(plain) == scaling_parameters(repeated)
    steps = [horizon(each, 64, 128, 10.5, batch=16, flops=1e12).steps or 0 for each in (plain, repeated)]
    assert steps[0] > 2 * steps[1] > 0


def test_a_paused_training_ends_with_the_bits_of_one_that_never_stopped(tmp_path: Path) -> None:
    """Of a routed model, by Muon; how many tokens go on is drawn in each step."""
    settings = {**SETTINGS, "embedding_lr": 0.05, "unembedding_lr": 0.004}

    def part(name: str, *hooks: Hook) -> None:
        torch.manual_seed(0)
        network = make_model_from_args(tiny_args("adm", block="modern", depth_embedding="learned"))
        source = TokenSource(TokenWindows(tokens(400).numpy().astype(np.uint16), 16), 0, tmp_path)
        train(tmp_path / name, objective=NextToken(network), source=source, hooks=hooks, **settings)

    part("whole")
    part("parts", StopAt("pause", 5))
    part("parts")
    whole, parts = (leaves(load_checkpoint(tmp_path / name / "ckpt.pt")) for name in ("whole", "parts"))
    assert any(name.endswith("/second_moment") for name in whole)
    assert [name for name in differing(whole, parts) if not name.startswith("/args")] == []


def test_depth_index_without_repeated_layers_is_told() -> None:
    told = cotformer.notes(parse_args(["--block", "modern", "--depth_index", "layer"]))
    assert "--depth_index has no effect on base: it repeats no layers" in told
    told = cotformer.notes(parse_args(["--model", "cot", "--depth_index", "layer"]))
    assert "--depth_index has no effect on --block published" in told
