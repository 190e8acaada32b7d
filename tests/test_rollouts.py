"""Rollouts: draws that are pure functions of their numbers, completions as the uncached network would have
them, and a network that is left as it was.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from data.tokenizer import named, open_tokenizer
from errors import OwnError
from optim.generation import lent
from optim.rewards import reward_of
from optim.rollouts import (
    EVALUATION,
    TRAINING,
    Asked,
    Completions,
    Rollouts,
    Sampling,
    choose,
    draw_keys,
    uniforms,
)
from tests.helpers import tiny_model

BYTES = open_tokenizer(named("bytes"))
STOP, MOST = 10, 6
CPU = torch.device("cpu")
PROMPTS = [Asked([1, 2, 3], "a"), Asked([7], "b"), Asked([9, 8, 7, 6, 5], "c")]
MODELS = ["base", "lncot", "adm"]


def rolled(model: Any, asked: list[Asked], keys: Any, **changes: Any) -> Completions:
    assert BYTES is not None
    rollouts = Rollouts(Sampling(BYTES, **{"stop": STOP, "most": MOST, **changes}), reward_of("regex:."))
    return rollouts.of(model, CPU, asked, keys)


def test_draws_are_apart_and_even() -> None:
    keys = draw_keys(3, TRAINING, range(500), 4)
    drawn = torch.cat([uniforms(keys, place) for place in range(5)])
    assert drawn.unique().numel() == drawn.numel() and drawn.min() >= 0 and drawn.max() < 1
    assert drawn.mean().item() == pytest.approx(0.5, abs=0.01)
    assert not np.intersect1d(keys, draw_keys(3, EVALUATION, range(500), 4)).size


def test_a_draw_does_not_depend_on_what_it_is_drawn_with() -> None:
    assert draw_keys(3, TRAINING, [5, 9], 4)[4:].tolist() == draw_keys(3, TRAINING, [9], 4).tolist()
    assert draw_keys(3, TRAINING, [9], 4).tolist() != draw_keys(4, TRAINING, [9], 4).tolist()


def test_tokens_are_chosen_as_often_as_their_odds() -> None:
    odds = torch.tensor([0.5, 0.2, 0.3, 0.0])
    count = 20_000
    draws = uniforms(draw_keys(0, TRAINING, range(count), 1), 0)
    chosen = choose(odds.log().expand(count, -1).clamp(min=-1e9), draws, 1.0)
    assert (chosen.bincount(minlength=4) / count).tolist() == pytest.approx(odds.tolist(), abs=0.01)


def test_without_a_temperature_the_likeliest_token_is_chosen() -> None:
    assert choose(torch.tensor([[0.0, 3.0, 1.0]]), torch.tensor([0.99]), 0).tolist() == [1]


def test_ruined_weights_are_one_line() -> None:
    with pytest.raises(OwnError, match=r"^the model's logits are not finite"):
        choose(torch.tensor([[0.0, torch.nan]]), torch.tensor([0.5]), 1.0)


@pytest.mark.parametrize("name", MODELS)
def test_completions_are_those_of_the_network_without_a_cache(name: str) -> None:
    model = tiny_model(name)
    keys = draw_keys(1, TRAINING, range(3), 2)
    found = rolled(model, PROMPTS, keys)
    with lent(model, CPU, (0.0,), 0, eager=False), torch.no_grad():
        model.eval()
        for row in range(6):
            tokens = list(PROMPTS[row // 2].tokens)
            for place in range(int(found.lengths[row])):
                logits = model(torch.tensor([tokens]), get_logits=True)["logits"][:, -1]
                draw = uniforms(keys[row : row + 1], place)
                tokens.append(int(choose(logits, draw, 1.0)))
            assert tokens[len(PROMPTS[row // 2].tokens) :] == found.tokens[row, : found.lengths[row]].tolist()


def test_what_follows_the_stop_token_does_not_count() -> None:
    model = tiny_model("base")
    keys = draw_keys(1, TRAINING, range(3), 200)
    found = rolled(model, PROMPTS, keys)
    places = torch.arange(MOST)
    is_stop = (found.tokens == STOP) & (places < found.lengths[:, None])
    assert 0 < found.ended.sum() < len(keys)
    assert torch.equal(is_stop.any(1), found.ended)
    assert torch.equal(is_stop.int().argmax(1)[found.ended] + 1, found.lengths[found.ended])
    assert bool((found.lengths[~found.ended] == MOST).all())
    assert not found.tokens[places >= found.lengths[:, None]].any()


def test_a_completion_does_not_depend_on_the_others_draws() -> None:
    model = tiny_model("base")
    keys = draw_keys(1, TRAINING, range(3), 4)
    both = rolled(model, PROMPTS, keys), rolled(model, PROMPTS, np.concatenate([keys[:4], keys[4:] ^ 1]))
    assert torch.equal(both[0].tokens[:4], both[1].tokens[:4])
    assert not torch.equal(both[0].tokens[4:], both[1].tokens[4:])


@pytest.mark.parametrize("name", ["base", "adm"])
def test_the_network_and_the_generators_are_left_as_they_were(name: str) -> None:
    model = tiny_model(name).train()
    settings, before = model.settings, torch.random.get_rng_state()
    rolled(model, PROMPTS, draw_keys(1, TRAINING, range(3), 2))
    assert model.training and model.settings is settings
    assert torch.equal(torch.random.get_rng_state(), before)


def test_every_token_and_reward_is_a_sign_of_life() -> None:
    assert BYTES is not None
    rollouts, beats = Rollouts(Sampling(BYTES, None, MOST), reward_of("regex:.")), []
    rollouts.beat = lambda: beats.append(1)
    rollouts.of(tiny_model("base"), CPU, PROMPTS, draw_keys(1, TRAINING, range(3), 2))
    assert len(beats) == MOST + 6
