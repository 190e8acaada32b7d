"""The nine models against the authors' outputs, gradients, training runs and parameters."""

import numpy as np
import pytest
import torch

import config
import models
from bench.gpu.reference import case_args
from models.export import authors_weights
from models.settings import ModelSettings
from models.transformer import Transformer
from optim.optimizers import make_optimizer
from optim.schedules import make_scheduler
from tests.helpers import fill, tokens
from tests.reference.cases import each

FILE = "official_models.json.gz"
each_case = each(FILE, "cases")
each_evaluated = each(FILE, "cases", where=lambda case: case["eval"])
each_with_depth = each(
    FILE, "cases", where=lambda case: case["eval"] and case["eval"]["average_depth"] is not None
)
each_trained = each(FILE, "cases", where=lambda case: case["train"])
each_training_run = each(FILE, "trajectories")


def case_model(case):
    return fill(models.make_model_from_args(case_args(case)), case["seed"])


def case_batch(case):
    ids = torch.tensor(case["ids"])
    return ids[:, :-1], ids[:, 1:]


def evaluated(case):
    """What the model returns in evaluation mode."""
    inputs, targets = case_batch(case)
    with torch.no_grad():
        return case_model(case).eval()(inputs, targets=targets, get_logits=True)


def trained(case):
    """The model after a forward and backward pass in training mode, and its loss."""
    inputs, targets = case_batch(case)
    model = case_model(case).train()
    loss = model(inputs, targets=targets)["loss"]
    loss.backward()
    return model, loss.item()


@each_evaluated
def test_evaluation_logits_are_the_authors(case):
    expected = np.array(case["eval"]["logits"])
    assert np.abs(evaluated(case)["logits"].numpy() - expected).max() <= 2e-5


@each_evaluated
def test_evaluation_loss_is_the_authors(case):
    assert evaluated(case)["loss"].item() == pytest.approx(case["eval"]["loss"], abs=2e-5, rel=0)


@each_with_depth
def test_average_depth_is_the_authors(case):
    depth = float(evaluated(case)["average_depth"])
    assert depth == pytest.approx(case["eval"]["average_depth"], abs=1e-6)


@each_trained
def test_training_loss_is_the_authors(case):
    assert trained(case)[1] == pytest.approx(case["train"]["loss"], abs=2e-5, rel=0)


@each_trained
def test_gradient_norms_are_the_authors(case):
    expected = {name: norm for name, norm in case["train"]["grad_norm"].items() if norm is not None}
    model, _ = trained(case)
    norms = {name: p.grad.norm().item() for name, p in model.named_parameters() if p.grad is not None}
    assert norms == pytest.approx(expected, rel=1e-4)


@each_case
def test_state_dict_has_the_authors_names_and_shapes(case):
    args = case_args(case)
    expected = dict(case["params"])
    expected.pop(f"transformer.mod.{args.n_repeat - 1}.mod_router.weight", None)
    if args.positional_encoder == "rotary":
        expected["transformer.wpe.freqs"] = [args.n_embd // args.n_head // 2]
    head = "to_logits.1.weight" if args.model == "pondernet" else "lm_head.weight"
    expected[head] = [args.vocab_size, args.n_embd]
    state = models.make_model_from_args(args).state_dict()
    assert {name: list(value.shape) for name, value in state.items()} == expected


@each_case
def test_the_authors_parameters_are_all_exported_and_no_others(case):
    """Buffers: angles, and the masks that the authors' attention keeps in three of the nine."""
    args = case_args(case)
    settings = ModelSettings.from_args(args)
    state = authors_weights(settings, fill(Transformer(settings), 3).state_dict())
    buffers = {name for name in state if name.endswith((".attn.bias", "wpe.freqs"))}
    tied = {"lm_head.weight", "to_logits.1.weight"}
    exported = {name: list(value.shape) for name, value in state.items() if name not in buffers | tied}
    assert exported == dict(case["params"])
    masked = settings.model in ("cotformer_full_depth", "cotformer_full_depth_lnmid_depthemb", "pondernet")
    assert sum(name.endswith(".attn.bias") for name in buffers) == (args.n_layer if masked else 0)
    assert ("transformer.wpe.freqs" in buffers) == (args.positional_encoder == "rotary")


def replayed(run):
    """The model after a recorded training run, and the losses and rates of its steps."""
    args = config.parse_args(run["argv"])
    model = fill(models.make_model_from_args(args), run["seed"]).train()
    optimizer = make_optimizer(model, args)
    schedule = make_scheduler(optimizer, args)
    losses, rates = [], []
    for step in range(run["steps"]):
        seed = run["seed"] * 1000 + step
        ids = tokens(run["batch"], args.sequence_length + 1, seed=seed, vocab=args.vocab_size)
        loss = model(ids[:, :-1], targets=ids[:, 1:])["loss"]
        loss.backward()
        losses.append(loss.item())
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
    return model, losses, rates


@each_training_run
def test_losses_of_a_training_run_are_the_authors(case):
    assert replayed(case)[1] == pytest.approx(case["losses"], abs=2e-5, rel=0)


@each_training_run
def test_learning_rates_of_a_training_run_are_the_authors(case):
    assert replayed(case)[2] == pytest.approx(case["lrs"], abs=1e-12, rel=0)


@each_training_run
def test_weights_after_a_training_run_are_the_authors(case):
    model, _, _ = replayed(case)
    norms = {name: parameter.norm().item() for name, parameter in model.named_parameters()}
    assert norms == pytest.approx(case["final_param_norm"], rel=1e-4)
