"""Modern blocks: fast attention in windows, generation, losses and the rest against the plain way.
tests/reference/ sets them against the public code.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from models import make_model_from_args
from models.macs import count_macs
from models.modern import SOFTCAP, rms_norm, rotate_halves, squared_relu
from models.transformer import Transformer
from optim import initial
from optim.generation import Sampling, Session, generate
from tests.command_lines import refused
from tests.helpers import tiny_args, tokens
from tests.programs import needs_compiler

LONG = 300  # more than two tiles of queries


def modern(seed: int = 0, model: str = "base", **settings: Any) -> Transformer:
    """A tiny model whose weights all matter: none of those that start at zero is."""
    defaults = {"block": "modern", "window_pattern": "SSL", "n_layer": 4, "vocab_size": 60}
    torch.manual_seed(seed)
    network = make_model_from_args(tiny_args(model, **{**defaults, **settings}))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.15)
    return network


def outcome(length: int, dtype: torch.dtype = torch.float32, **settings: Any) -> list[torch.Tensor]:
    """Loss, logits and gradients of one batch."""
    model = modern(**{"sequence_length": length, **settings}).to(dtype)
    idx, targets = tokens(2, length, vocab=60), tokens(2, length, seed=1, vocab=60)
    out = model(idx, targets=targets, get_logits=True)
    gradients = torch.autograd.grad(
        out["loss"], list(model.parameters()), allow_unused=True, materialize_grads=True
    )
    return [out["loss"].detach(), out["logits"].detach(), *gradients]


def assert_close(found: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float) -> None:
    for mine, theirs in zip(found, expected, strict=True):
        assert (mine - theirs).abs().max() <= tolerance * theirs.abs().max().clamp_min(1)


@pytest.mark.parametrize("n_kv_head", [None, 2, 1])
@pytest.mark.parametrize("length", [1, 13, LONG])
def test_fast_attention_is_the_reference(length: int, n_kv_head: int | None) -> None:
    fast, reference = [outcome(length, attention=way, n_kv_head=n_kv_head) for way in ("fast", "reference")]
    assert_close(fast, reference, 2e-5)


def test_squared_relu_has_the_gradient_of_its_formula() -> None:
    x = torch.randn(40, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(squared_relu, x)
    assert torch.equal(squared_relu(x), torch.relu(x) ** 2)


def test_rows_that_pad_the_head_have_no_gradient() -> None:
    model = modern()
    model(tokens(2, 8, vocab=60), targets=tokens(2, 8, seed=1, vocab=60))["loss"].backward()
    gradient = model.lm_head.weight.grad
    assert gradient.shape[0] == 64 and gradient[:60].any(1).all() and not gradient[60:].any()


def test_fast_attention_is_exact_in_double_precision() -> None:
    ways = [outcome(LONG, torch.float64, attention=way) for way in ("fast", "reference")]
    assert_close(*ways, 1e-11)


def test_sequences_beyond_the_trained_length_are_seen_through_windows() -> None:
    ways = [outcome(LONG, attention=way, sequence_length=40) for way in ("fast", "reference")]
    assert_close(*ways, 2e-5)


@pytest.mark.parametrize(("position", "seen"), [(1, False), (2, True)])
def test_a_token_is_seen_as_far_as_windows_reach(position: int, seen: bool) -> None:
    """Two layers, whose queries see 4 and 8 positions back: 12 before the last one, which is 14."""
    model = modern(n_layer=2, window_pattern="S", sequence_length=8).eval()
    idx = tokens(1, 15, vocab=60)
    other = idx.clone()
    other[0, position] = (other[0, position] + 1) % 60
    with torch.no_grad():
        one, another = [model(x, get_logits=True)["logits"][0, -1] for x in (idx, other)]
    assert torch.equal(one, another) != seen


@pytest.mark.parametrize("unit", ["pass", "block"])
def test_activation_checkpointing_changes_no_bit(unit: str) -> None:
    ways = [outcome(13, activation_checkpointing=how) for how in ("none", unit)]
    assert all(torch.equal(*pair) for pair in zip(*ways, strict=True))


def test_two_lengths_after_each_other_are_as_alone() -> None:
    model = modern(sequence_length=40).eval()
    with torch.no_grad():
        whole = model(tokens(2, 40, vocab=60), get_logits=True)["logits"]
        short = model(tokens(2, 40, vocab=60)[:, :11], get_logits=True)["logits"]
    assert (whole[:, :11] - short).abs().max() < 1e-5


@needs_compiler
@pytest.mark.slow
def test_compiled_blocks_give_the_same_numbers() -> None:
    plain, compiled = modern(n_layer=2), modern(n_layer=2)
    compiled.compile_blocks()
    idx, targets = tokens(2, 12, vocab=60), tokens(2, 12, seed=1, vocab=60)
    results = []
    for model in (plain, compiled):
        loss = model(idx, targets)["loss"]
        results.append([loss.detach(), *torch.autograd.grad(loss, list(model.parameters()))])
    assert_close(results[1], results[0], 1e-5)


# generation


@pytest.mark.parametrize("attention", ["fast", "reference"])
@pytest.mark.parametrize("n_kv_head", [None, 2])
def test_tokens_in_pieces_give_the_logits_of_the_whole(n_kv_head: int | None, attention: str) -> None:
    model = modern(n_kv_head=n_kv_head, attention=attention, sequence_length=16).eval()
    idx = tokens(2, 40, vocab=60)
    session = Session(model, 2, torch.device("cpu"), longest=40)
    with torch.no_grad():
        whole = model(idx, get_logits=True)["logits"]
    for begin, end in [(0, 5), (5, 6), (6, 7), (7, 19), (19, 20), (20, 39), (39, 40)]:
        found = session.extend(idx[:, begin:end].tolist())
        assert (found - whole[:, end - 1]).abs().max() < 2e-5, (begin, end)


def test_prompts_of_different_lengths_go_on_as_alone() -> None:
    model = modern(sequence_length=24).eval()
    prompts = [tokens(9, vocab=60).tolist(), tokens(4, seed=1, vocab=60).tolist()]

    def continuation(batch: list[list[int]]) -> list[list[int]]:
        said: list[list[int]] = [[] for _ in batch]
        session = Session(model, len(batch), torch.device("cpu"))
        steps = generate(session, batch, 10, Sampling(temperature=0), 0, 60, lambda index, new: False)
        for index, token in steps:
            said[index].append(token)
        return said

    assert continuation(prompts) == [continuation([prompt])[0] for prompt in prompts]


# parts


def test_logits_are_capped() -> None:
    model = modern().eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(1000)
        logits = model(tokens(2, 8, vocab=60), get_logits=True)["logits"]
    assert logits.shape == (2, 8, 60) and 0.99 * SOFTCAP < logits.abs().max() <= SOFTCAP


def test_rms_norm_has_the_gradient_of_its_formula() -> None:
    x = torch.randn(3, 5, 8, dtype=torch.float64, requires_grad=True)
    upstream = torch.randn_like(x)
    formula = F.rms_norm(x, (8,), eps=torch.finfo(torch.float64).eps)
    mine, theirs = [torch.autograd.grad(y, x, upstream)[0] for y in (rms_norm(x), formula)]
    assert torch.allclose(mine, theirs, atol=1e-14) and torch.allclose(rms_norm(x), formula, atol=1e-14)


def test_half_precision_is_normed_in_float32() -> None:
    x = (torch.randn(4, 64) * 1e-3).bfloat16()
    assert torch.equal(rms_norm(x), rms_norm(x.float()).bfloat16())


def test_halves_are_turned_back_by_their_angles() -> None:
    angle = torch.tensor([[[[0.5, 1.5]]]])
    x = torch.randn(1, 1, 1, 4)
    pairs = torch.complex(x[..., :2], x[..., 2:]) * torch.polar(torch.ones_like(angle), -angle)
    turned = rotate_halves(x, (angle.cos(), angle.sin()))
    assert torch.allclose(turned, torch.cat((pairs.real, pairs.imag), dim=-1), atol=1e-6)


def test_macs_count_windows_and_gates() -> None:
    args = tiny_args("base", block="modern", window_pattern="SL", n_layer=2, n_kv_head=2)
    matrices = 2 * (2 * 32 * 32 + 2 * 32 * 16 + 8 * 32 * 32) + 32 * 2  # a gate of each value head
    attention = 2 * 32 * (8 + 16)
    assert count_macs(args, 16) == 16 * (matrices + attention) + 32 * 64


def test_a_public_checkpoint_begins_a_training(tmp_path: Path) -> None:
    """Weights alone, of a compiled model, embeddings in bfloat16."""
    trained, new = modern(), modern(seed=1)
    state = {f"_orig_mod.{name}": value for name, value in trained.state_dict().items() if "wpe" not in name}
    state["_orig_mod.transformer.wte.weight"] = state["_orig_mod.transformer.wte.weight"].bfloat16()
    torch.save(state, tmp_path / "model_000100.pt")
    initial.load(new, tmp_path / "model_000100.pt")
    for (name, mine), theirs in zip(new.named_parameters(), trained.parameters(), strict=True):
        wanted = theirs.bfloat16().float() if name == "transformer.wte.weight" else theirs
        assert torch.equal(mine, wanted), name


def test_embeddings_instead_of_tokens_are_refused() -> None:
    with pytest.raises(ValueError, match="give tokens"):
        modern().run(torch.zeros(1, 4, 32))


# the command line


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--window_pattern SXL", "--window_pattern 'SXL' must be letters S and L"),
        ("--window_pattern ''", "must be letters S and L"),
        ("--n_kv_head 5", "--n_head 12 is not divisible by --n_kv_head 5"),
        ("--n_embd 16 --n_head 2", "needs --n_embd 32 or more"),
        ("--bias", "has no --bias"),
        ("--dropout 0.1", "has no --dropout"),
        ("--positional_encoder none", "has no --positional_encoder"),
        ("--attention_window_length 9", "has no --attention_window_length"),
        ("--eval_seq_length 100", "would change the windows"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(words: str, said: str, capsys: Any) -> None:
    lines = refused(capsys, "--block", "modern", *shlex.split(words))
    assert len(lines) == 1 and said in lines[0]
