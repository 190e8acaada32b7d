"""What must hold of any configuration of the nine models; tests/reference/ sets them against the authors'."""

import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import models
from errors import UserError
from models.losses import next_token
from models.routing import draw_length_factors
from models.settings import ModelSettings
from models.variants import ALIASES, VARIANTS, random_depth_methods
from tests.helpers import tiny_args, tiny_model, tokens

ADM = ALIASES["adm"]
BUT_MOD = ALIASES["but_mod"]
ROUTED = [ADM, BUT_MOD, BUT_MOD + "_for_mac_compute"]
NOT_ROUTED = [name for name in VARIANTS if name not in ROUTED]


# names, shapes and starting values


def test_nine_models_are_registered_under_the_authors_names():
    assert models.registered_models() == [
        "base",
        "but_full_depth",
        "cotformer_full_depth",
        "cotformer_full_depth_lnmid_depthemb",
        "adaptive_cotformer_mod_efficient_sigmoid_crw_lnmid_de_random_factor_single_final",
        "but_mod_efficient_sigmoid_lnmid_depthemb_random_factor",
        "but_mod_efficient_sigmoid_lnmid_depthemb_random_factor_for_mac_compute",
        "pondernet",
        "but_halting_freeze_input_on_stop",
    ]


def test_the_measurement_alias_has_the_parameters_of_the_model_it_measures():
    measured, alias = (tiny_model(name).state_dict() for name in (BUT_MOD, BUT_MOD + "_for_mac_compute"))
    assert {name: value.shape for name, value in alias.items()} == {
        name: value.shape for name, value in measured.items()
    }


@pytest.mark.parametrize("model", ROUTED)
def test_router_after_the_last_pass_is_not_allocated(model):
    assert len(tiny_model(model).transformer["mod"]) == 2


@pytest.mark.parametrize("model", VARIANTS)
def test_output_head_shares_the_embedding(model):
    instance = tiny_model(model)
    head = instance.to_logits[1] if model == "pondernet" else instance.lm_head
    assert head.weight is instance.transformer["wte"].weight


@pytest.mark.parametrize("alias", ALIASES)
def test_short_name_gives_the_same_settings_as_the_long_one(alias):
    assert ModelSettings.from_args(tiny_args(alias)) == ModelSettings.from_args(tiny_args(ALIASES[alias]))


@pytest.mark.parametrize("alias", ALIASES)
def test_short_name_works_without_the_command_line(alias):
    args = tiny_args(ALIASES[alias])
    args.model = alias
    assert models.make_model_from_args(args).settings.model == ALIASES[alias]


def test_unknown_model_lists_the_known_ones():
    args = tiny_args("base")
    args.model = "gpt5"
    with pytest.raises(UserError, match=r"unknown model 'gpt5'.*cotformer_full_depth_lnmid_depthemb"):
        models.make_model_from_args(args)


def seeded(model, seed):
    torch.manual_seed(seed)
    return models.make_model_from_args(tiny_args(model)).state_dict()


@pytest.mark.parametrize("model", VARIANTS)
def test_same_seed_gives_the_same_start(model):
    first, second = seeded(model, 7), seeded(model, 7)
    assert all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("model", VARIANTS)
def test_another_seed_gives_another_start(model):
    assert not torch.equal(
        seeded(model, 7)["transformer.wte.weight"], seeded(model, 8)["transformer.wte.weight"]
    )


@pytest.mark.parametrize("model", VARIANTS)
def test_parameters_start_as_the_table_says(model):
    torch.manual_seed(3)
    args = tiny_args(
        model,
        "--n_embd",
        "128",
        "--n_layer",
        "6",
        "--bias",
        "--depth_embedding",
        "learned",
        "--depth_random_method",
        "sb_act",
    )
    wrong = []
    for name, parameter in models.make_model_from_args(args).named_parameters():
        if name.endswith("bias") or name == "depth_predictor._gate.2.weight":
            as_told = bool((parameter == 0).all())
        elif parameter.dim() == 1:
            as_told = bool((parameter == 1).all())
        else:
            std, n = 0.02 / math.sqrt(2 * 6) if name.endswith("c_proj.weight") else 0.02, parameter.numel()
            as_told = abs(parameter.std().item() / std - 1) < 5 / math.sqrt(2 * n) and abs(
                parameter.mean().item()
            ) < 5 * std / math.sqrt(n)
        if not as_told:
            wrong.append(name)
    assert wrong == []


@pytest.mark.parametrize("model", VARIANTS)
def test_bias_gives_every_block_and_norm_biases(model):
    instance = tiny_model(model, "--bias")
    assert [
        name
        for name, m in instance.transformer.named_modules()
        if isinstance(m, (nn.Linear, nn.LayerNorm)) and m.bias is None and not name.startswith("mod.")
    ] == []


@pytest.mark.parametrize("model", VARIANTS)
def test_without_bias_no_block_and_norm_has_one(model):
    assert [
        name for name, _ in tiny_model(model).transformer.named_parameters() if name.endswith("bias")
    ] == []


@pytest.mark.parametrize(("pattern", "most"), [("*.py", 3100), ("coalescence/*.py", 800)])
def test_models_fit_in_so_many_lines(pattern, most):
    # about models, not of them
    others = ("adapters.py", "byte_format.py", "export.py", "footprint.py", "fp8.py", "hugging_face.py")
    others += ("macs.py", "quantised.py", "trials.py")
    files = [path for path in Path(models.__file__).parent.glob(pattern) if path.name not in others]
    assert 0 < sum(len(path.read_text().splitlines()) for path in files) < most


# what a model returns


@pytest.mark.parametrize("model", VARIANTS)
def test_loss_in_evaluation_is_the_mean_cross_entropy_of_its_logits(model):
    x, y = tokens(2, 16), tokens(2, 16, seed=1)
    torch.manual_seed(0)
    with torch.no_grad():
        out = tiny_model(model)(x, targets=y, get_logits=True)
    assert out["loss"].item() == pytest.approx(
        F.cross_entropy(out["logits"].flatten(0, 1), y.flatten()).item(), abs=1e-5
    )


@pytest.mark.parametrize("model", VARIANTS)
def test_targets_of_minus_one_do_not_count(model):
    x, y = tokens(2, 16), tokens(2, 16, seed=1)
    y[:, ::3] = -1
    torch.manual_seed(0)
    with torch.no_grad():
        out = tiny_model(model)(x, targets=y, get_logits=True)
    expected = F.cross_entropy(out["logits"].flatten(0, 1), y.flatten(), ignore_index=-1)
    assert out["loss"].item() == pytest.approx(expected.item(), abs=1e-5)


@pytest.mark.parametrize("model", VARIANTS)
def test_hits_are_the_tokens_that_the_logits_guess(model):
    x, y = tokens(4, 16), tokens(4, 16, seed=1, vocab=3)
    torch.manual_seed(0)
    with torch.no_grad():
        out = tiny_model(model)(x, targets=y, get_logits=True)
    assert torch.equal(out["hits"], out["logits"].argmax(-1) == y)


@pytest.mark.parametrize("model", VARIANTS)
def test_there_is_no_loss_without_targets(model):
    assert tiny_model(model)(tokens(2, 16))["loss"] is None


@pytest.mark.parametrize("model", VARIANTS)
def test_logits_are_made_only_when_asked_for(model):
    assert tiny_model(model)(tokens(2, 16), targets=tokens(2, 16))["logits"] is None


@pytest.mark.parametrize("model", VARIANTS)
def test_sequences_may_be_shorter_than_sequence_length(model):
    assert tiny_model(model)(tokens(3, 7), get_logits=True)["logits"].shape == (3, 7, 64)


# who sees what


def logits_with_two_endings(model, keep):
    """Logits of the first `keep` positions, and of the rest, for two sequences that differ in the rest."""
    first, second = tokens(1, 16, seed=1), tokens(1, 16, seed=2)
    second[:, :keep] = first[:, :keep]
    found = []
    for ids in (first, second):
        torch.manual_seed(0)
        with torch.no_grad():
            found.append(model(ids, get_logits=True)["logits"])
    return found


@pytest.mark.parametrize("keep", [1, 5, 15])
@pytest.mark.parametrize("model", NOT_ROUTED)
def test_later_tokens_change_no_earlier_logits(model, keep):
    one, other = logits_with_two_endings(tiny_model(model), keep)
    assert (one[:, :keep] - other[:, :keep]).abs().max() < 1e-5


@pytest.mark.parametrize("model", NOT_ROUTED)
def test_earlier_tokens_change_later_logits(model):
    ids = tokens(1, 16, seed=1)
    changed = ids.clone()
    changed[0, 0] = (ids[0, 0] + 1) % 64
    found = []
    for x in (ids, changed):
        torch.manual_seed(0)
        with torch.no_grad():
            found.append(tiny_model(model)(x, get_logits=True)["logits"])
    assert (found[0][:, -1] - found[1][:, -1]).abs().max() > 1e-3


@pytest.mark.parametrize("model", ROUTED)
def test_routing_everyone_is_causal(model):
    one, other = logits_with_two_endings(tiny_model(model), 9)
    assert (one[:, :9] - other[:, :9]).abs().max() < 1e-5


@pytest.mark.parametrize("model", ROUTED)
def test_routing_by_capacity_is_not_causal(model):
    one, other = logits_with_two_endings(tiny_model(model, eval_length_factor=[0.5, 0.25]), 9)
    assert (one[:, :9] - other[:, :9]).abs().max() > 1e-3


def naive_attention(attention, rotary, window, x, x_positions, key_inputs, key_positions):
    """Every query against every key of the passes so far, one by one rule: 0 <= query_pos - key_pos <=
    window.
    """
    state, width, heads = dict(attention.named_parameters()), x.shape[-1], attention.heads
    separate = "q_attn.weight" in state

    def project(source, part):
        name, row = ("q_attn", 0) if separate and part == 0 else ("c_attn", part - 1 if separate else part)
        rows = slice(row * width, (row + 1) * width)
        return (source @ state[f"{name}.weight"][rows].T + state[f"{name}.bias"][rows]).view(
            *source.shape[:2], heads, -1
        )

    def turn(vectors, positions):
        if not rotary:
            return vectors
        pairs = torch.view_as_complex(vectors.double().unflatten(-1, (-1, 2)).contiguous())
        rates = 10000.0 ** (-torch.arange(0, vectors.shape[-1], 2).double() / vectors.shape[-1])
        angles = positions[..., None, None] * rates
        return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2).float()

    q = turn(project(x, 0), x_positions)
    k = torch.cat(
        [turn(project(source, 1), at) for source, at in zip(key_inputs, key_positions, strict=True)], dim=1
    )
    v = torch.cat([project(source, 2) for source in key_inputs], dim=1)
    back = x_positions[:, :, None] - torch.cat(key_positions, dim=1)[:, None, :]
    seen = (back >= 0) & (back <= (10**9 if window is None else window))
    scores = torch.einsum("bthd,bkhd->bhtk", q, k) / math.sqrt(q.shape[-1])
    y = torch.einsum("bhtk,bkhd->bthd", scores.masked_fill(~seen[:, None], -math.inf).softmax(-1), v)
    return y.flatten(2) @ state["c_proj.weight"].T + state["c_proj.bias"]


@pytest.mark.parametrize("window", [None, 0, 5])
@pytest.mark.parametrize("encoder", ["rotary", "none"])
@pytest.mark.parametrize(
    "model", ["but_full_depth", "cotformer_full_depth", "cotformer_full_depth_lnmid_depthemb", ADM]
)
def test_attention_sees_keys_at_or_before_the_query_in_passes_so_far(model, encoder, window):
    flags = ["--bias", "--n_repeat", "4", "--n_head", "2", "--positional_encoder", encoder]
    instance = tiny_model(
        model,
        *flags,
        attention_window_length=window,
        eval_length_factor=[0.8, 0.5, 0.3] if model == ADM else None,
    )
    attention, sources, outputs = instance.transformer["h_mid"][0].attn, [], []
    attention.c_attn.register_forward_hook(lambda module, inputs, output: sources.append(inputs[0]))
    attention.c_proj.register_forward_hook(lambda module, inputs, output: outputs.append(output))
    with torch.no_grad():
        routed = instance(tokens(2, 13), get_router_weights=True)["router_weights"]
    everyone = torch.arange(13).expand(2, -1)
    # those of the last pass are not told
    places = [everyone] * 4 if model != ADM else [positions for positions, _ in routed]
    worst = 0.0
    for number, positions in enumerate(places, start=1):
        x, y = sources[number - 1], outputs[number - 1]
        earlier = 0 if VARIANTS[model].attends == "all" else number - 1
        with torch.no_grad():
            expected = naive_attention(
                attention,
                encoder == "rotary",
                window,
                x,
                positions,
                sources[earlier:number],
                places[earlier:number],
            )
        worst = max(worst, (y - expected).abs().max().item())
    assert worst < 1e-5


# dropout


@pytest.mark.parametrize("model", VARIANTS)
def test_dropout_is_off_in_evaluation(model):
    x, found = tokens(2, 16), []
    for dropout in ("0.0", "0.7"):
        torch.manual_seed(0)
        with torch.no_grad():
            found.append(tiny_model(model, "--dropout", dropout)(x, get_logits=True)["logits"])
    assert torch.equal(*found)


@pytest.mark.parametrize("model", VARIANTS)
def test_dropout_is_on_in_training(model):
    found = []
    for dropout in ("0.0", "0.7"):
        torch.manual_seed(0)
        values = {"training_length_factor": [1.0, 1.0]} if model in ROUTED else {}
        found.append(
            tiny_model(model, "--dropout", dropout, **values)
            .train()(tokens(2, 16), targets=tokens(2, 16))["loss"]
            .item()
        )
    assert found[0] != pytest.approx(found[1], abs=1e-3)


def test_dropout_reaches_the_attention_weights():
    instance = tiny_model("base", "--dropout", "0.5").train()
    for module in instance.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    losses = {instance(tokens(2, 16), targets=tokens(2, 16))["loss"].item() for _ in range(3)}
    assert len(losses) > 1


# routing


@given(st.sampled_from(random_depth_methods), st.integers(0, 9), st.integers(0, 2**32))
def test_drawn_length_factors_never_increase(method, n, seed):
    torch.manual_seed(seed)
    factors = draw_length_factors(method, n)
    assert all(later <= earlier for earlier, later in pairwise(factors))


@given(st.sampled_from(random_depth_methods), st.integers(0, 9), st.integers(0, 2**32))
def test_drawn_length_factors_are_n_shares(method, n, seed):
    torch.manual_seed(seed)
    factors = draw_length_factors(method, n)
    assert len(factors) == n and all(0 <= factor <= 1 for factor in factors)


@pytest.mark.parametrize("method", random_depth_methods)
def test_length_factors_are_drawn_from_the_seeded_generator(method):
    drawn = []
    for _ in range(2):
        torch.manual_seed(11)
        drawn.append([draw_length_factors(method, 4) for _ in range(8)])
    assert drawn[0] == drawn[1]


@pytest.mark.parametrize("method", random_depth_methods)
def test_length_factors_differ_from_draw_to_draw(method):
    torch.manual_seed(11)
    assert len({tuple(draw_length_factors(method, 4)) for _ in range(20)}) > 5


def test_uniform_factors_are_the_authors_draw():
    torch.manual_seed(11)
    drawn = draw_length_factors("uniform", 4)
    torch.manual_seed(11)
    assert drawn == torch.clamp(torch.rand(4) * 1.05, max=1).sort(descending=True).values.tolist()


@pytest.mark.parametrize("model", ROUTED)
def test_training_draws_factors_afresh_for_each_forward(model):
    torch.manual_seed(0)
    instance = tiny_model(model).train()
    assert len({float(instance(tokens(1, 16))["average_depth"]) for _ in range(8)}) > 1


@pytest.mark.parametrize("model", ROUTED)
def test_given_training_factors_replace_the_draw(model):
    instance = tiny_model(model, training_length_factor=[0.5, 0.25]).train()
    assert {float(instance(tokens(1, 16))["average_depth"]) for _ in range(4)} == {2 + 1.75}


@pytest.mark.parametrize("model", ROUTED)
def test_training_factors_have_no_say_in_evaluation(model):
    assert float(tiny_model(model, training_length_factor=[0.5, 0.25])(tokens(1, 16))["average_depth"]) == 5.0


@pytest.mark.parametrize("factors", [[0.0, 0.0], [0.01, 0.01], [1.0, 0.0]])
@pytest.mark.parametrize("model", ROUTED)
def test_routers_may_send_nobody_on(model, factors):
    with torch.no_grad():
        loss = tiny_model(model, eval_length_factor=factors)(tokens(2, 16), targets=tokens(2, 16))["loss"]
    assert math.isfinite(loss)


def router_weights(model, factors):
    with torch.no_grad():
        return tiny_model(model, eval_length_factor=factors)(tokens(2, 16), get_router_weights=True)[
            "router_weights"
        ]


def test_router_weights_of_the_compact_model_cover_the_active_tokens():
    shapes = [
        (tuple(positions.shape), tuple(scores.shape))
        for positions, scores in router_weights(ADM, [0.5, 0.25])
    ]
    assert shapes == [((2, 16), (2, 16)), ((2, 8), (2, 8))]


@pytest.mark.parametrize("model", ROUTED[1:])
def test_router_weights_of_the_masked_model_cover_all_tokens(model):
    shapes = [
        (tuple(positions.shape), tuple(scores.shape))
        for positions, scores in router_weights(model, [0.5, 0.25])
    ]
    assert shapes == [((2, 16), (2, 16)), ((2, 16), (2, 16))]


@pytest.mark.parametrize("model", ROUTED)
def test_router_weights_are_shares(model):
    assert all(((scores > 0) & (scores < 1)).all() for _, scores in router_weights(model, [0.5, 0.25]))


def test_tokens_with_the_best_scores_go_on():
    (positions, scores), (later, _) = router_weights(ADM, [0.5, 0.25])
    best = scores.topk(8, dim=1).indices.sort(dim=1).values
    assert torch.equal(later, positions.gather(1, best))


@pytest.mark.parametrize("model", NOT_ROUTED)
def test_models_without_routers_have_no_router_weights(model):
    assert tiny_model(model)(tokens(1, 16), get_router_weights=True)["router_weights"] is None


def test_router_weights_are_returned_only_when_asked_for():
    assert "router_weights" not in tiny_model(ADM)(tokens(1, 16))


@pytest.mark.parametrize("name", VARIANTS)
def test_a_run_and_its_loss_are_what_forward_returns(name):
    model, idx, targets = tiny_model(name).train(), tokens(2, 16), tokens(2, 16, seed=1)
    torch.manual_seed(0)
    whole = model(idx, targets=targets)
    torch.manual_seed(0)
    hidden = model.run(idx)
    losses = next_token(model, hidden, targets)
    assert torch.equal(hidden.states, whole["hidden"])
    assert torch.equal(losses.loss, whole["loss"])


@pytest.mark.parametrize("name", VARIANTS)
def test_a_loss_outside_the_model_reaches_the_same_parameters_under_ddp(name, single_process_group):
    """A module of one's own, whose forward pass is the run and its loss, is what DDP wraps."""

    class Objective(nn.Module):
        def __init__(self, network):
            super().__init__()
            self.network = network

        def forward(self, idx, targets):
            return next_token(self.network, self.network.run(idx), targets).loss

    gradients = []
    for wrap in (False, True):
        objective = Objective(tiny_model(name).train())
        wrapped = nn.parallel.DistributedDataParallel(objective, find_unused_parameters=True)
        torch.manual_seed(0)
        (wrapped if wrap else objective)(tokens(2, 16), tokens(2, 16, seed=1)).backward()
        gradients.append([parameter.grad for parameter in objective.parameters()])
    assert all(one is None or torch.equal(one, other) for one, other in zip(*gradients, strict=True))


@pytest.fixture
def single_process_group(tmp_path):
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1
    )
    yield
    torch.distributed.destroy_process_group()
