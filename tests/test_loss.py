"""Cross-entropy in slices against torch's own over all logits at once."""

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from models import loss
from models.loss import linear_cross_entropy

N, WIDTH, VOCAB = 23, 16, 37


def problem(ignored=(), seed=0):
    torch.manual_seed(seed)
    hidden, weight = torch.randn(N, WIDTH, requires_grad=True), torch.randn(VOCAB, WIDTH, requires_grad=True)
    targets = torch.randint(0, VOCAB, (N,))
    targets[list(ignored)] = -1
    return hidden, weight, targets


def dense(hidden, weight, targets):
    """Per token, with all logits at once."""
    return F.cross_entropy(hidden @ weight.T, targets, ignore_index=-1, reduction="none")


def gradients(total, *inputs):
    return torch.autograd.grad(total, inputs)


@pytest.fixture(
    params=[1 << 24, 5 * VOCAB, VOCAB, 1],
    ids=["one slice", "five rows a slice", "one row a slice", "less than a row"],
)
def slices(request, monkeypatch):
    monkeypatch.setattr(loss, "SLICE_ELEMENTS", request.param)


pytestmark = pytest.mark.usefixtures("slices")


def test_total_is_the_sum_of_cross_entropies():
    inputs = problem()
    assert linear_cross_entropy(*inputs)[0].item() == pytest.approx(dense(*inputs).sum().item(), rel=1e-6)


def test_losses_are_per_token():
    inputs = problem(ignored=(3, 22))
    assert torch.allclose(linear_cross_entropy(*inputs)[1], dense(*inputs), atol=1e-5)


def test_ignored_tokens_add_nothing_to_the_total():
    inputs = problem(ignored=(0, 7, 22))
    assert linear_cross_entropy(*inputs)[0].item() == pytest.approx(dense(*inputs).sum().item(), rel=1e-6)


@pytest.mark.parametrize(
    "ignored", [(), (0, 7, 22), range(N)], ids=["none ignored", "some ignored", "all ignored"]
)
def test_gradient_of_hidden_states_is_exact(ignored):
    hidden, weight, targets = problem(ignored)
    (ours,) = gradients(linear_cross_entropy(hidden, weight, targets)[0], hidden)
    (theirs,) = gradients(dense(hidden, weight, targets).sum(), hidden)
    assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize(
    "ignored", [(), (0, 7, 22), range(N)], ids=["none ignored", "some ignored", "all ignored"]
)
def test_gradient_of_the_weight_is_exact(ignored):
    hidden, weight, targets = problem(ignored)
    (ours,) = gradients(linear_cross_entropy(hidden, weight, targets)[0], weight)
    (theirs,) = gradients(dense(hidden, weight, targets).sum(), weight)
    assert torch.allclose(ours, theirs, atol=1e-5)


def weighted_problem():
    hidden, weight, targets = problem(ignored=(0, 7))
    return hidden, weight, targets, torch.rand(N, requires_grad=True)


def test_token_weights_weigh_the_total():
    hidden, weight, targets, weights = weighted_problem()
    expected = (dense(hidden, weight, targets) * weights).sum()
    assert linear_cross_entropy(hidden, weight, targets, weights)[0].item() == pytest.approx(
        expected.item(), rel=1e-6
    )


@pytest.mark.parametrize("which", [0, 1, 3], ids=["hidden", "weight", "token weights"])
def test_gradients_with_token_weights_are_exact(which):
    inputs = weighted_problem()
    (ours,) = gradients(linear_cross_entropy(*inputs)[0], inputs[which])
    (theirs,) = gradients((dense(*inputs[:3]) * inputs[3]).sum(), inputs[which])
    assert torch.allclose(ours, theirs, atol=1e-5)


def test_gradient_scales_with_what_comes_after():
    hidden, weight, targets, weights = weighted_problem()
    ours = gradients(
        linear_cross_entropy(hidden, weight, targets, weights)[0] * 0.25, hidden, weight, weights
    )
    theirs = gradients((dense(hidden, weight, targets) * weights).sum() * 0.25, hidden, weight, weights)
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(ours, theirs, strict=True))


def test_large_logits_do_not_overflow():
    hidden, weight, targets = problem()
    inputs = hidden * 1000, weight, targets
    assert linear_cross_entropy(*inputs)[0].item() == pytest.approx(dense(*inputs).sum().item(), rel=1e-5)


# logits that are bounded by CAP

CAP = 3.0


def dense_capped(hidden, weight, targets):
    capped = CAP * (hidden @ weight.T / CAP).tanh()
    return F.cross_entropy(capped, targets, ignore_index=-1, reduction="none")


@pytest.mark.parametrize("wanted", [True, False], ids=["gradient", "no gradient"])
def test_losses_under_a_cap(wanted):
    inputs = problem(ignored=(0, 7))
    with torch.set_grad_enabled(wanted):
        losses = linear_cross_entropy(*inputs, softcap=CAP)[1]
    assert torch.allclose(losses, dense_capped(*inputs), atol=1e-5)


@pytest.mark.parametrize("which", [0, 1], ids=["hidden", "weight"])
def test_gradients_under_a_cap_are_exact(which):
    inputs = problem(ignored=(0, 7))
    mine = gradients(linear_cross_entropy(*inputs, softcap=CAP)[0], inputs[which])[0]
    theirs = gradients(dense_capped(*inputs).sum(), inputs[which])[0]
    assert torch.allclose(mine, theirs, atol=1e-5)


def test_total_without_gradient_is_the_same():
    inputs = problem(ignored=(4,))
    with torch.no_grad():
        assert linear_cross_entropy(*inputs)[0].item() == pytest.approx(dense(*inputs).sum().item(), rel=1e-6)


def test_hits_are_right_guesses_of_counted_tokens():
    hidden, weight, targets = problem()
    with torch.no_grad():
        guesses = (hidden @ weight.T).argmax(-1)
        targets[::2] = guesses[::2]
        targets[4] = -1
        assert torch.equal(linear_cross_entropy(hidden, weight, targets)[2], guesses == targets)


def bfloat16_and_float32(ask):
    hidden, weight, targets = problem()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = ask(hidden, weight, linear_cross_entropy(hidden, weight, targets)[0])
    return rounded, ask(hidden, weight, dense(hidden, weight, targets).sum())


def test_loss_in_bfloat16_is_close():
    rounded, exact = bfloat16_and_float32(lambda hidden, weight, total: total.item())
    assert rounded == pytest.approx(exact, rel=5e-3)


def test_loss_in_bfloat16_takes_its_products_in_bfloat16():
    rounded, exact = bfloat16_and_float32(lambda hidden, weight, total: total.item())
    assert rounded != pytest.approx(exact, rel=1e-7)


@pytest.mark.parametrize("which", [0, 1], ids=["hidden", "weight"])
def test_gradients_in_bfloat16_are_close(which):
    rounded, exact = bfloat16_and_float32(
        lambda hidden, weight, total: gradients(total, (hidden, weight)[which])[0]
    )
    assert (rounded - exact).norm() < 0.02 * exact.norm()


def test_gradients_in_bfloat16_stay_float32():
    hidden, weight, targets = problem()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        total = linear_cross_entropy(hidden, weight, targets)[0]
    assert [grad.dtype for grad in gradients(total, hidden, weight)] == [torch.float32, torch.float32]


class Largest(TorchDispatchMode):
    """Remembers the most elements of any tensor that an operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else [out]:
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("softcap", [None, CAP])
def test_logits_never_exist_beyond_a_slice(softcap):
    torch.manual_seed(0)
    slices = 1 if softcap is None else loss.CPU_SLICES
    rows = max(1, slices * loss.SLICE_ELEMENTS // VOCAB)
    hidden, weight = torch.randn(200, 2, requires_grad=True), torch.randn(VOCAB, 2, requires_grad=True)
    with Largest() as watch:
        linear_cross_entropy(hidden, weight, torch.randint(0, VOCAB, (200,)), softcap=softcap)[0].backward()
    assert watch.elements <= max(hidden.numel(), min(rows, 200) * VOCAB)
