"""Losses of preferences (DPO) and of rewards (GRPO) against the reference numbers of the public training
library.
"""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from data.batch import Batch
from models.hidden import Hidden
from optim.objectives.dpo import Dpo
from optim.objectives.preferences import completion_logps, group_advantages, grpo_loss
from tests.reference.cases import each, of

FILE = "training_library.json.gz"


class Fixed(nn.Module):
    """A network of tokens whose logits are given (N, T, V)."""

    may_leave_unused = False

    def __init__(self, logits):
        super().__init__()
        self.logits = nn.Parameter(logits)
        self.weight = torch.eye(logits.shape[-1])

    @property
    def head(self):
        return nn.Identity(), self.weight

    def run(self, inputs):
        return Hidden(self.logits, torch.ones(()))


SIDES = ("chosen", "rejected")


def padded(given, key, length):
    """Values (N, T, ...) of a case, T made `length`."""
    value = torch.tensor(given[key])
    return F.pad(value, (0, 0) * (value.dim() - 2) + (0, length - value.shape[1]))


def pairs(given):
    """The objective of a case, and its batch; both sides as long as the longer one."""
    longest = max(len(given[side][0]) for side in SIDES)
    networks = []
    for name in ("policy", "ref"):
        logits = [padded(given, f"{name}_{side}", longest - 1) for side in SIDES]
        networks.append(Fixed(torch.cat(logits)))
    tensors = {}
    for side in SIDES:
        tensors[side] = padded(given, side, longest)
        tensors[f"{side}_mask"] = padded(given, f"{side}_mask", longest - 1).bool()
    return Dpo(*networks, beta=given["beta"]), Batch(tensors, len(given["chosen"]))


@each(FILE, "cases", where=of("dpo"))
def test_dpo_losses_and_gradients(case):
    given, right = case["input"], case["right"]
    objective, batch = pairs(given)
    loss = objective(batch).mean
    loss.backward()
    assert loss.item() == pytest.approx(right["loss"], rel=2e-5, abs=2e-5)
    for side, grad in zip(SIDES, objective.network.logits.grad.chunk(2), strict=True):
        wanted = torch.tensor(right[f"grad_policy_{side}"])
        assert torch.allclose(grad[:, : wanted.shape[1]], wanted, atol=2e-5)
        assert not grad[:, wanted.shape[1] :].any()


@each(FILE, "cases", where=of("dpo"))
def test_dpo_log_probabilities_and_rewards(case):
    given, right = case["input"], case["right"]
    objective, batch = pairs(given)
    logps = objective.logps(batch)
    for mine, name in zip(
        logps, ("policy_chosen", "policy_rejected", "ref_chosen", "ref_rejected"), strict=True
    ):
        assert mine.tolist() == pytest.approx(right["logps"][name], rel=2e-5, abs=2e-5)
    for number, name in enumerate(("chosen_rewards", "rejected_rewards")):
        rewards = given["beta"] * (logps[number] - logps[number + 2])
        assert rewards.tolist() == pytest.approx(right[name], rel=2e-5, abs=1e-4)


@each(FILE, "cases", where=of("grpo"))
def test_grpo_losses_and_gradients(case):
    given, right = case["input"], case["right"]
    tokens, mask = torch.tensor(given["tokens"]), torch.tensor(given["mask"], dtype=torch.bool)
    policy, reference = (Fixed(torch.tensor(given[f"{name}_logits"])) for name in ("policy", "ref"))
    advantages = group_advantages(torch.tensor(given["rewards"]), torch.tensor(given["groups"]))
    logps, ref_logps = (completion_logps(network, tokens, mask) for network in (policy, reference))
    old = ref_logps if given["old_logps"] is None else torch.tensor(given["old_logps"])
    found = grpo_loss(
        logps, old.detach(), ref_logps.detach(), advantages, mask, given["beta"], given["epsilon"]
    )
    found.loss.backward()
    assert advantages.tolist() == pytest.approx(right["advantages"], rel=2e-5, abs=2e-5)
    assert found.loss.item() == pytest.approx(right["loss"], rel=2e-5, abs=2e-5)
    assert torch.allclose(policy.logits.grad, torch.tensor(right["grad_policy"]), atol=2e-5)
    assert found.k3.item() == pytest.approx(right["mean_k3"], rel=2e-5, abs=2e-5)
    clipped = torch.tensor(right["clipped"], dtype=torch.bool)[mask]
    assert found.clipped.item() == pytest.approx(clipped.float().mean().item(), abs=1e-6)
    for mine, name in ((logps, "logp"), (ref_logps, "ref_logp")):
        assert torch.allclose(mine, torch.tensor(right[name]) * mask, atol=2e-5)
