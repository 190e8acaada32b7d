"""The part of bench/gpu.sh that sets attention in blocks (FlexAttention) beside the dense mask whose place it
takes on GPUs: in windows, and in passes that tokens have left. Prints a line of JSON for a row.

python -m bench.gpu.blocks blocks --device cuda
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from bench.common import peak_growth, training_step
from bench.gpu.figures import median_seconds, paper
from bench.gpu.rows import FAIL, PASS, SKIPPED, attempt, run_one, tell
from models.attention import AttentionPlan, attend, visible
from models.flex import block_mask
from models.trials import BlockForm, block_trouble

HEADS, WIDTH = 12, 64
SHARES = (1.0, 0.7, 0.5, 0.3)  # of the tokens that are in each pass
NEAR = 0.02  # relative difference of outputs, of numbers in half precision


def kept(length: int, share: float, batch: int) -> Tensor:
    """Positions of the tokens of a pass, ascending, (B, T_r)."""
    drawn = torch.rand(batch, length, generator=torch.Generator().manual_seed(0)).argsort(dim=1)
    return drawn[:, : int(share * length)].sort(dim=1).values


def whole_step(given: Namespace) -> None:
    """Time and memory of a training step of an adaptive model, against reference attention."""
    took = {}
    for way in ("fast", "reference"):
        args = paper(given.tiny, model="adm", training_length_factor=[0.8, 0.6, 0.4, 0.2], attention=way)
        args.batch_size //= 2
        _, step = training_step(args, given.device, given.dtype, plain=False)
        took[way] = median_seconds(step, given.device), peak_growth(step, given.device)
        del step
    seconds, memory = (took["reference"][place] / took["fast"][place] for place in (0, 1))
    tell("adm, tokens leave: fast over reference", value=seconds, unit="times the speed")
    tell("adm, tokens leave: memory of the reference", value=memory, unit="times the fast way's")


def blocks(given: Namespace) -> None:
    """Time and memory of attention, forward and backward, and of a whole step."""
    device, dtype = given.device, given.dtype
    batch, length, window = (1, 160, 40) if given.tiny else (8, 2048, 512)

    def works() -> None:
        trouble = block_trouble(torch.device(device), getattr(torch, dtype), WIDTH, BlockForm())
        tell(f"FlexAttention, {dtype}", PASS if trouble is None else FAIL, note=trouble or "")

    def against_mask(name: str, positions: list[Tensor], window: int | None) -> None:
        """positions: of the keys of each pass; the queries are those of the last."""
        positions = [own.to(device) for own in positions]
        queries = positions[-1]
        lengths = [own.shape[1] for own in (queries, *positions, *positions)]
        inputs = []
        for length in lengths:
            drawn = torch.randn(batch, HEADS, length, WIDTH, device=device, dtype=getattr(torch, dtype))
            inputs.append(drawn.requires_grad_())
        q, keys, values = inputs[0], inputs[1 : len(positions) + 1], inputs[len(positions) + 1 :]
        passes = list(zip(keys, values, strict=True))

        def plan(way: str) -> AttentionPlan:
            if way == "blocks":
                return AttentionPlan(None, blocks=block_mask(queries, positions, window))
            return AttentionPlan(None, mask=visible(queries, torch.cat(positions, dim=1), window))

        def run(way: str) -> None:
            out = attend(q, passes, plan(way), 0.0)
            torch.autograd.grad(out.float().square().sum(), inputs)

        mine, theirs = (attend(q, passes, plan(way), 0.0).detach().float() for way in ("blocks", "mask"))
        off = float((mine - theirs).norm() / theirs.norm())
        target = f"at most {NEAR:g}"
        tell(f"{name}: off the mask's", PASS if off <= NEAR else FAIL, value=off, target=target)
        took = {way: median_seconds(partial(run, way), device) for way in ("blocks", "mask")}
        tell(f"{name}: blocks over the mask", value=took["mask"] / took["blocks"], unit="times the speed")
        grown = {way: peak_growth(partial(run, way), device) for way in took}
        share = grown["blocks"] / grown["mask"]
        tell(f"{name}: memory of blocks", value=share, unit="of the mask's", note=f"{grown['mask']:.0f} MiB")

    whole = torch.arange(length).expand(batch, -1)
    left = [kept(length, share, batch) for share in SHARES]
    works_of: dict[str, Callable[[], None]] = {
        f"FlexAttention, {dtype}": works,
        "window": partial(against_mask, "window", [whole], window),
        "passes that tokens leave": partial(against_mask, "passes that tokens leave", left, None),
        "adm, tokens leave: fast over reference": partial(whole_step, given),
    }
    for name, work in works_of.items():
        if device == "cpu":
            tell(name, SKIPPED, note="CPUs attend in tiles: FlexAttention has no gradients there")
        else:
            attempt(name, work)


if __name__ == "__main__":
    run_one(__doc__, {"blocks": blocks})
