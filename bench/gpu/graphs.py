"""The parts of bench/gpu.sh that set generation and small micro-batches by CUDA graphs beside those without.
Each prints a line of JSON for a row.

python -m bench.gpu.graphs graphs --device cuda
python -m bench.gpu.graphs batches --device cuda
"""

from __future__ import annotations

from argparse import Namespace
from functools import partial

import torch

from bench.common import autocast, flags_of_gpt, seconds
from bench.gpu.checks import GPT, optimizer_step, small
from bench.gpu.figures import median_seconds, paper
from bench.gpu.reference import fill
from bench.gpu.rows import FAIL, PASS, SKIPPED, attempt, run_one, tell
from models import make_model_from_args
from optim.generation import Session

PROMPT, WARM, TOKENS = 8, 8, 96  # all in the slots of one graph
NEAR = 0.05  # relative difference of logits, of numbers in half precision
STEPS = 8  # of a training, the most of them captured
NEAR_LOSS = 1e-3  # nats, of one kernel's rounding or another's


def graphs(given: Namespace) -> None:
    """Logits of one sequence, token by token, and how many tokens a second."""
    device, dtype = given.device, given.dtype

    def generated(model: torch.nn.Module, captures: bool) -> tuple[torch.Tensor, float, bool]:
        """Logits, seconds, and whether graphs were used to the end."""
        session = Session(model, 1, torch.device(device), partial(autocast, device, dtype), captures=captures)
        calls = [[[1] * PROMPT], *([[2 + number]] for number in range(WARM + TOKENS))]
        logits = [session.extend(call) for call in calls[: 1 + WARM]]
        took = seconds(lambda: logits.extend(session.extend(call) for call in calls[1 + WARM :]), device)
        return torch.cat(logits), took, session.captures

    def one(name: str, args: Namespace) -> None:
        model = fill(make_model_from_args(args), 1).to(device).eval()
        plain, slow, _ = generated(model, captures=False)
        found, fast, was_captured = generated(model, captures=True)
        off = float((found - plain).norm() / plain.norm())
        verdict = PASS if off <= NEAR and was_captured else FAIL
        note = "" if was_captured else "steps could not be captured"
        tell(f"{name}: off those without", verdict, value=off, target=f"at most {NEAR:g}", note=note)
        tell(f"{name}: tokens", value=TOKENS / fast, unit="tokens/s", note=f"{TOKENS / slow:.0f} without")
        tell(f"{name}: over those without", value=slow / fast, unit="times the speed")

    shape = {"n_layer": 12, "n_embd": 768, "n_head": 6, "sequence_length": 2048}
    if given.tiny:
        shape = {"n_layer": 2, "n_embd": 64, "n_head": 2, "sequence_length": 128, "vocab_size": 512}
    models = {"lncot": paper(given.tiny, sequence_length=128 if given.tiny else 256)}
    for name, args in {**models, "modern GPT, depth 12": flags_of_gpt(**shape)}.items():
        if device == "cpu":
            tell(f"{name}: off those without", SKIPPED, note="only CUDA has graphs")
        else:
            attempt(f"{name}: off those without", partial(one, name, args))


def batches(given: Namespace) -> None:
    """Losses of a training in small micro-batches (of 4 sequences), and how long a step takes."""
    device, dtype = given.device, given.dtype

    def trained(name: str, captures: bool) -> tuple[torch.Tensor, float]:
        """Losses, and seconds of a step."""
        args = small(name, device, given.tiny, acc_steps=4, dtype=dtype, lr=1e-3, cuda_graphs=captures)
        steps = optimizer_step(args, torch.device(device, 0))
        losses = torch.stack([steps.take(number)[0] for number in range(STEPS)])
        return losses, median_seconds(lambda: steps.take(STEPS), device)

    def one(name: str) -> None:
        plain, slow = trained(name, captures=False)
        found, fast = trained(name, captures=True)
        off = float((found - plain).abs().max())
        verdict, target = PASS if off <= NEAR_LOSS else FAIL, f"at most {NEAR_LOSS:g}"
        tell(f"{name}: loss off that without", verdict, value=off, unit="nats", target=target)
        tell(f"{name}: a step over one without", value=fast / slow, unit="of the time")

    for name in ("base", "lncot", GPT):
        if device == "cpu":
            tell(f"{name}: loss off that without", SKIPPED, note="only CUDA has graphs")
        else:
            attempt(f"{name}: loss off that without", partial(one, name))


if __name__ == "__main__":
    run_one(__doc__, {"graphs": graphs, "batches": batches})
