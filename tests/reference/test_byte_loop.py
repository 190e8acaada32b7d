"""The byte-level training loop against the reference numbers of the public code, where that is right."""

import math
import zlib
from typing import ClassVar

import numpy as np
import pytest
import torch

import config
from config.mixture import RANDOM, effective_weights
from data.batch import Batch, PlainSource
from data.bins import TokenWindows
from data.mixture import MixtureSource
from errors import UserError
from models import make_model_from_args
from models.attention import Rotary, rotate
from models.byte_format import MODEL_FIELDS, mismatches, our_name
from optim.checkpoint import load_checkpoint
from optim.evaluation import Measured
from optim.fit import fit
from optim.objectives import NextToken
from optim.schedules import WARMUP_COS, Shape
from optim.tracked import LOWER, Tracked
from tests.reference.byte_loop import each_of


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


# the loop


class Stream(PlainSource):
    """The public sampler as a source: what comes before a step is drawn again."""

    def __init__(self, sources, weights, rows, length, seed):
        self.arguments = sources, weights, rows, length, seed
        self.drawn = []
        self.sampler = Replayed(*self.arguments)

    def samples(self, step, first, count):
        while len(self.drawn) <= step:
            self.drawn.append(self.sampler.batch()[2])
        inputs, targets = self.drawn[step]
        return Batch({"inputs": inputs, "targets": targets}, targets.numel())


class FewBatches:
    """The public evaluation: batches of one stream, from a generator that is seeded anew each time."""

    name = "wiki"
    quantities: ClassVar = {"val_loss": LOWER}

    def __init__(self, network, tokens, rows, length, batches, seed):
        self.network, self.batches = network, batches
        self.arguments = {"wiki": tokens}, {"wiki": 1.0}, rows, length, seed
        self.starts = []

    def run(self, whole, should_stop, advanced):
        source, losses = Replayed(*self.arguments), []
        was_training = self.network.training
        self.network.eval()
        for _ in range(self.batches):
            _, starts, (inputs, targets) = source.batch()
            self.starts.append(starts)
            with torch.no_grad():
                losses.append(self.network(inputs, targets=targets)["loss"].item())
        self.network.train(was_training)
        loss = sum(losses) / len(losses)
        return Measured({"val_loss": loss}, f"loss {loss}")

    def state(self):
        return {}

    def take_up(self, state, args):
        pass

    def summary(self, rows, step):
        return {}


@each_of("evaluation")
def test_evaluations(case):
    given, right = case["input"], case["right"]
    network = network_of(given["config"], given["weight_seed"]).train()
    tokens = stream(*given["stream"])
    before = torch.get_rng_state()
    evaluation = FewBatches(network, tokens, given["B"], given["T"], given["eval_steps"], given["seed"])
    measured = [evaluation.run(False, bool, bool).values["val_loss"] for _ in range(2)]
    assert evaluation.starts == right["start"] * 2
    assert measured == pytest.approx([right["loss"]] * 2, abs=2e-5)
    assert network.training and torch.equal(torch.get_rng_state(), before)


def run_of(case, folder, **changes):
    """The training of a case by the loop, from where the folder stands; its network and rows."""
    given = case["input"]
    model, train = given["config"]["model"], given["config"]["train"]
    network = network_of(model, given["weight_seed"])
    weights, _ = mixture(train["p_train"], {k: v[2] for k, v in given["sources"].items()}, model["T"])
    sources = {name: stream(*rule) for name, rule in given["sources"].items()}
    source = Stream(sources, weights, train["B"], model["T"], train["seed"])
    wiki = stream(*given["val_sources"]["wiki"])
    evaluation = FewBatches(network, wiki, train["B"], model["T"], train["eval_steps"], train["seed"])
    fitted = fit(
        NextToken(network),
        source,
        steps=train["total_steps"],
        lr=train["base_lr"],
        batch_size=train["B"],
        evaluations=[evaluation],
        folder=folder,
        device="cpu",
        scheduler=WARMUP_COS,
        warmup_steps=train["warmup_steps"],
        min_lr=train["min_lr"],
        beta1=0.9,
        beta2=0.95,
        weight_decay=0.1,
        decayed="all",
        grad_clip=train["grad_clip"],
        eval_freq=train["eval_every"],
        save_checkpoint_freq=train["ckpt_every"],
        keep_checkpoints=0,
        track="val_loss@wiki",
        **changes,
    )
    return network, fitted.rows


def of_kind(rows, kind, key):
    return [row[key] for row in rows if row["kind"] == kind]


@each_of("training_run")
def test_training(case, tmp_path):
    right = case["right"]
    network, rows = run_of(case, tmp_path)
    assert of_kind(rows, "train", "loss") == pytest.approx(right["losses"], abs=1e-4)
    assert of_kind(rows, "train", "lr") == pytest.approx(right["lrs"], rel=1e-9)
    assert of_kind(rows, "train", "grad_norm") == pytest.approx(right["grad_norms"], rel=1e-3)
    values = list(
        zip(of_kind(rows, "eval@wiki", "step"), of_kind(rows, "eval@wiki", "val_loss"), strict=True)
    )
    assert values == [(step, pytest.approx(loss, abs=1e-4)) for step, loss in right["val_losses"]]
    mine = dict(network.named_parameters())
    for name, norm in right["final_param_norm"].items():
        assert mine[our_name(name)].norm().item() == pytest.approx(norm, rel=1e-4)
    best = load_checkpoint(tmp_path / "best.pt")
    assert best["itr"] == [file["step"] for file in right["files"] if file["name"] == "best.pt"][-1]
    assert best["best"]["value"] == pytest.approx(right["best_val_loss"], abs=1e-4)
    written = {file["step"] for file in right["files"] if file["name"].startswith("step_")}
    kept = {load_checkpoint(path)["itr"] for path in tmp_path.glob("ckpt*.pt")}
    assert kept == written | {right["final_step"]}


@each_of("resumed_run")
def test_a_resumed_training_sees_the_batches_of_the_unbroken_one(case, tmp_path):
    given, right = case["input"], case["right"]
    run_of(case, tmp_path)
    begin = int(given["resume_from"].removeprefix("step_").removesuffix(".pt"))
    for path in [*tmp_path.glob("ckpt.pt"), *tmp_path.glob("summary.json")]:
        path.unlink()
    _, rows = run_of(case, tmp_path, use_pretrained=f"ckpt_{begin}.pt")
    resumed = [row for row in rows if row["step"] > begin]
    assert of_kind(resumed, "train", "loss") == pytest.approx(right["losses_after_resume"], abs=1e-4)
    assert of_kind(resumed, "train", "lr") == pytest.approx(right["lrs"], rel=1e-9)
    values = list(
        zip(of_kind(resumed, "eval@wiki", "step"), of_kind(resumed, "eval@wiki", "val_loss"), strict=True)
    )
    assert values == [(step, pytest.approx(loss, abs=1e-4)) for step, loss in right["val_losses"]]
    final = load_checkpoint(tmp_path / "ckpt.pt")
    assert final["itr"] == right["final_step"]
    assert final["best"]["value"] == pytest.approx(right["best_val_loss"], abs=1e-4)


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
