"""The byte-level training loop against the reference numbers of the public code, where that is right."""

import math
import zlib

import numpy as np
import pytest
import torch

import config
from data.bins import TokenWindows
from data.mixture import RANDOM, MixtureSource, effective_weights
from errors import UserError
from models import make_model_from_args
from models.attention import Rotary, rotate
from models.byte_format import MODEL_FIELDS, mismatches, our_name
from optim.schedules import WARMUP_COS, Shape
from optim.tracked import Tracked
from tests.reference.cases import each

FILE = "byte_loop.json.gz"


def each_of(*groups):
    return each(FILE, "cases", where=lambda case: case["group"] in groups)


def number(value):
    """A number of a case, where nan and inf are strings."""
    return float(value)


# schedule


@each_of("lr_at_step")
def test_rates(case):
    given = case["input"]
    shape = Shape(WARMUP_COS, given["base_lr"], 0.0, 1.0, 0.0, given["warmup_steps"], given["min_lr"])
    leg = shape.planned(given["total_steps"])
    for step, right in zip(given["steps"], case["right"], strict=True):
        rate = shape.rate(leg, step)
        if isinstance(right, str):
            assert given["min_lr"] <= rate <= given["base_lr"]
        else:
            assert rate == pytest.approx(right, rel=1e-9)


# sources and windows


def mixture(weights, lengths, length, required=()):
    """The effective weights and what is missing, as training has them."""
    weights = {name: number(value) for name, value in weights.items()}
    return effective_weights(weights, lengths, length + 1, drop_missing=True, required=required)


def check_error(case, raised):
    message = str(raised.value)
    assert all(name in message for name in case["right"].get("names", []))
    for name, count in case["right"].get("lengths", {}).items():
        assert f"{name} ({count})" in message
    if "sum" in case["right"]:
        assert f"sum to {case['right']['sum']}" in message


@each_of("mixture")
def test_mixtures(case):
    given = case["input"]
    arguments = given["p_train"], given["source_lengths"], given["T"], ("wiki",)
    if "error" in case["right"]:
        with pytest.raises(UserError) as raised:
            mixture(*arguments)
        check_error(case, raised)
        return
    weights, missing = mixture(*arguments)
    assert weights == pytest.approx(case["right"]["p"], abs=1e-9)
    assert sorted(missing) == sorted(case["right"]["missing"])


@each_of("get_batch_error")
def test_mixtures_of_exactly_these_sources(case):
    given = case["input"]
    with pytest.raises(UserError) as raised:
        mixture(given["p"], given["source_lengths"], given["T"], given["p"])
    check_error(case, raised)


def stream(a, b, n):
    i = np.arange(n)
    return ((a * i * i + b * i + (i >> 3)) % 256).astype("<u2")


class Replayed:
    """The public sampler, which draws from one generator, batch after batch."""

    def __init__(self, sources, weights, rows, length, seed):
        self.names = sorted(sources)
        self.windows = {name: TokenWindows(sources[name], length) for name in self.names}
        self.weights = torch.tensor([weights[name] for name in self.names], dtype=torch.float32)
        self.rows, self.length = rows, length
        self.generator = torch.Generator().manual_seed(seed)

    def batch(self):
        """Names and starts of the rows of the next batch, and the batch."""
        drawn = torch.multinomial(self.weights, self.rows, replacement=True, generator=self.generator)
        names = [self.names[k] for k in drawn.tolist()]
        starts = []
        for name in names:
            high = self.windows[name].tokens.size - self.length
            starts.append(int(torch.randint(0, high, (1,), generator=self.generator)))
        parts = [self.windows[name].at(np.array([start])) for name, start in zip(names, starts, strict=True)]
        return names, starts, [torch.cat([part[key] for part in parts]) for key in ("inputs", "targets")]


@each_of("batch")
def test_batches_of_the_public_sampler(case):
    given, right = case["input"], case["right"]
    sources = {name: stream(*rule) for name, rule in given["sources"].items()}
    replayed = Replayed(sources, given["p"], given["B"], given["T"], given["seed"])
    assert replayed.names == right["order"]
    batches = [replayed.batch() for _ in range(given["batches"])]
    assert [names for names, _, _ in batches] == right["source"]
    assert [starts for _, starts, _ in batches] == right["start"]
    assert [part.tolist() for part in batches[0][2]] == [right["first_x"], right["first_y"]]


@each_of("window_range")
def test_windows_begin_where_they_may(case):
    given, right = case["input"], case["right"]
    if "error" in right:
        with pytest.raises(UserError, match=str(right["need"])):
            mixture({"a": 1.0}, {"a": given["length"]}, given["T"])
        return
    windows = TokenWindows(np.zeros(given["length"], dtype="<u2"), given["T"])
    source = MixtureSource({"a": windows}, {"a": 1.0}, 0, RANDOM)
    starts = {place.start for place in source.places(0, 40 * right["starts"])}
    assert starts == set(range(right["first_start"], right["last_start"] + 1))
    assert len(starts) == right["starts"]


@each_of("stream_length_guard")
def test_lengths_are_measured_against_the_configured_sequence(case):
    given = case["input"]
    lengths = given["stream_lengths"]
    weights = {name: 1 / len(lengths) for name in lengths}
    too_short = []
    try:
        mixture(weights, lengths, given["T"])
    except UserError as error:
        too_short = [name for name in lengths if f"{name} ({lengths[name]})" in str(error)]
    assert too_short == case["right"]["too_short"]


# network


def network_of(settings, seed):
    """A byte GPT of the spec's settings, its weights by name."""
    flags = {ours: settings[its] for its, ours in MODEL_FIELDS.items()}
    args = config.add_defaults(
        {"model": "base", **flags, "dropout": 0.0, "mlp_bias": True, "norm_bias": True, "attention": "fast"}
    )
    network = make_model_from_args(args)
    mine = dict(network.named_parameters())
    names = ["tok_emb.weight", "ln_f.weight", "ln_f.bias"]
    for layer in range(settings["L"]):
        for part in (
            "ln1.weight",
            "ln1.bias",
            "attn.qkv.weight",
            "attn.proj.weight",
            "ln2.weight",
            "ln2.bias",
        ):
            names.append(f"blocks.{layer}.{part}")
        for part in ("mlp.fc1.weight", "mlp.fc1.bias", "mlp.fc2.weight", "mlp.fc2.bias"):
            names.append(f"blocks.{layer}.{part}")
    assert {our_name(name) for name in names} == mine.keys()
    for name in names:
        parameter = mine[our_name(name)]
        draw = np.random.RandomState((zlib.crc32(name.encode()) ^ seed) & 0xFFFFFFFF)
        z = torch.from_numpy(draw.standard_normal(tuple(parameter.shape)).astype(np.float32))
        if name.endswith("bias"):
            value = 0.05 * z
        elif parameter.dim() == 1:
            value = 1 + 0.1 * z
        else:
            value = 0.08 * z
        with torch.no_grad():
            parameter.copy_(value)
    return network


@each_of("gpt_forward")
def test_the_network(case):
    given, right = case["input"], case["right"]
    network = network_of(given["config"], given["seed"]).eval()
    ids = torch.tensor(given["ids"])
    out = network(ids[:, :-1], targets=ids[:, 1:], get_logits=True)
    assert out["loss"].item() == pytest.approx(right["loss"], abs=2e-5)
    torch.testing.assert_close(out["logits"], torch.tensor(right["logits"]), rtol=0, atol=2e-5)
    out["loss"].backward()
    mine = dict(network.named_parameters())
    assert sum(parameter.numel() for parameter in mine.values()) == right["parameter_count"]
    for name, shape in right["parameters"]:
        assert list(mine[our_name(name)].shape) == shape
    for name, norm in right["grad_norm"].items():
        assert mine[our_name(name)].grad.norm().item() == pytest.approx(norm, rel=1e-4)


@each_of("rope")
def test_rotary_positions(case):
    q = torch.tensor(case["input"]["q"])
    rotary = Rotary(q.shape[-1], case["input"]["theta"])
    rotated = rotate(q, rotary(torch.arange(q.shape[-2]).unsqueeze(0)))
    torch.testing.assert_close(rotated, torch.tensor(case["right"]["rotated"]), rtol=0, atol=1e-6)


# checkpoints


@each_of("resume_check")
def test_mismatches_of_a_resume(case):
    found = mismatches(case["input"]["loaded"], case["input"]["current"])
    assert [list(each) for each in found] == case["right"]["mismatches"]


@each_of("best_rule")
def test_the_best_checkpoint(case):
    given, right = case["input"], case["right"]
    tracked = Tracked("val_loss", {"": {"val_loss": "lower"}}, 1)
    tracked.value = given["best_val_loss_at_start"]
    written = []
    for step, loss in enumerate(given["val_losses"], start=1):
        if tracked.improves("", {"val_loss": number(loss)}, step):
            written.append(step)
    assert written == right["best_written_at_evaluation"]
    assert tracked.value == right["best_val_loss"] and math.isfinite(tracked.value)
