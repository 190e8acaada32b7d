"""Attention in blocks (models/flex.py): FlexAttention itself, which runs on CPUs without gradients, and where
GPUs take it, on an emulated one.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch._dynamo import config as dynamo
from torch.nn.attention import flex_attention as of_torch

from models.attention import visible
from models.cache import GenerationCache
from models.flex import BLOCK, PROGRAMS, attend_in_blocks, block_mask, compiled, whole_block_mask
from models.trials import FEW, MANY, ONE, BlockForm, block_trouble
from tests.emulated_cuda import emulated_cuda
from tests.emulated_kernels import flex
from tests.emulated_tensors import DEVICE, EmulatedCuda, held
from tests.helpers import tiny_model, tokens

NOWHERE = 1000
CPU = torch.device("cpu")


@pytest.fixture
def device() -> Iterator[EmulatedCuda]:
    with emulated_cuda() as emulated:
        yield emulated


def left(length: int, counts: tuple[int, int]) -> Tensor:
    """Ascending positions of the tokens that are left in two sequences, with padding, (2, tokens)."""
    draw, rows = torch.Generator().manual_seed(0), []
    for count in counts:
        positions = torch.randperm(length, generator=draw)[:count].sort().values
        rows.append(F.pad(positions, (0, max(counts) - count), value=NOWHERE))
    return torch.stack(rows)


WHOLE = torch.arange(300).unsqueeze(0)
# positions of queries, those of each pass's keys, window
CASES: dict[str, tuple[Tensor, list[Tensor], int | None]] = {
    "tokens have left": (left(300, (170, 150)), [WHOLE, left(300, (170, 150))], None),
    "few are left": (left(300, (9, 3)), [WHOLE, left(300, (9, 3))], None),
    "a window": (WHOLE, [WHOLE], 40),
    "a window of several passes": (WHOLE, [WHOLE, WHOLE], 170),
    "tokens have left a window": (left(300, (140, 150)), [WHOLE, left(300, (140, 150))], 60),
    "whole blocks": (WHOLE[:, :256], [WHOLE[:, :256]] * 2, None),
    "a ragged prompt": (left(20, (20, 12)), [left(20, (20, 12))], None),
    "one token after sequences of two lengths": (
        torch.tensor([[200], [140]]),
        [torch.arange(256).where(torch.arange(256) <= torch.tensor([[200], [140]]), NOWHERE)],
        None,
    ),
}
each_case = pytest.mark.parametrize("name", CASES)


def keys_of(name: str) -> Tensor:
    return torch.cat([positions.expand(2, -1) for positions in CASES[name][1]], dim=1)


@each_case
@pytest.mark.parametrize("shared", [1, 2])
def test_blocks_give_what_a_mask_gives(name: str, shared: int) -> None:
    queries, passes, window = CASES[name]
    draw = torch.Generator().manual_seed(1)
    q = torch.randn(2, 4, queries.shape[1], 16, generator=draw)
    k, v = (torch.randn(2, 4 // shared, keys_of(name).shape[1], 16, generator=draw) for _ in range(2))
    found = attend_in_blocks(q, k, v, block_mask(queries, passes, window))
    k, v = (each.repeat_interleave(shared, dim=1) for each in (k, v))
    truth = F.scaled_dot_product_attention(q, k, v, attn_mask=visible(queries, keys_of(name), window))
    is_real = (queries < NOWHERE).expand(2, -1)
    assert torch.allclose(found.transpose(1, 2)[is_real], truth.transpose(1, 2)[is_real], atol=2e-6)


@each_case
def test_the_blocks_are_those_of_a_search_of_all_pairs(name: str) -> None:
    queries, passes, window = CASES[name]
    keys, found = keys_of(name), block_mask(queries, passes, window)
    shape = 2, 1, queries.shape[1], keys.shape[1]
    seen = visible(queries, keys, window).expand(shape)
    blocks = F.pad(seen, (0, -shape[3] % BLOCK, 0, -shape[2] % BLOCK)).unflatten(3, (-1, BLOCK))
    some = blocks.unflatten(2, (-1, BLOCK)).any(5).any(3)
    listed = torch.zeros_like(some)
    for counts, indices in (
        (found.kv_num_blocks, found.kv_indices),
        (found.full_kv_num_blocks, found.full_kv_indices),
    ):
        assert counts is not None and indices is not None
        chosen = torch.arange(indices.shape[-1]) < counts.unsqueeze(-1)
        listed |= (
            torch.zeros(chosen.shape, dtype=torch.bool).scatter(-1, indices.long(), chosen).expand_as(some)
        )
    assert not bool((some & ~listed).any()), "a block in which a query sees a key is left out"
    assert int(listed.sum()) <= int(some.sum()) + 2


def test_blocks_in_which_all_see_all_are_computed_without_asking() -> None:
    found = whole_block_mask(4 * BLOCK, None, 2, CPU)
    assert found.full_kv_num_blocks is not None
    assert found.full_kv_num_blocks[0, 0].tolist() == [0, 2, 4, 6]
    assert found.kv_num_blocks[0, 0].tolist() == [2, 2, 2, 2]


def test_blocks_of_the_backward_pass_are_those_of_the_forward_one() -> None:
    queries, passes, window = CASES["tokens have left a window"]
    found = block_mask(queries, passes, window)
    ours = found.q_num_blocks, found.full_q_num_blocks
    torchs = of_torch.BlockMask.from_kv_blocks(
        found.kv_num_blocks, found.kv_indices, found.full_kv_num_blocks, found.full_kv_indices
    )
    theirs = torchs.q_num_blocks, torchs.full_q_num_blocks
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))  # type: ignore[arg-type]


def test_the_blocks_of_a_window_are_made_once() -> None:
    assert whole_block_mask(200, 30, 1, CPU) is whole_block_mask(200, 30, 1, CPU)


def test_only_blocks_of_the_full_length_are_kept(device: EmulatedCuda) -> None:
    model = tiny_model("base", "--attention_window_length", "5").to("cuda")
    whole_block_mask.cache_clear()
    with torch.no_grad(), torch.autocast("cuda", torch.bfloat16):
        for length in (16, 9, 11, 16):
            model(tokens(2, length).to("cuda"), get_logits=True)
    assert whole_block_mask.cache_info().currsize == 1


def test_blocks_are_made_without_a_wait_for_the_device(device: EmulatedCuda) -> None:
    queries, passes, window = CASES["tokens have left a window"]
    on_it = [each.to("cuda") for each in passes]
    device.uploads.clear()
    block_mask(queries.to("cuda"), on_it, window)
    assert device.downloads == []


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_it_is_taken_in_half_precision(device: EmulatedCuda, dtype: torch.dtype) -> None:
    assert block_trouble(DEVICE, dtype, 16, BlockForm()) is None


@pytest.mark.parametrize(("where", "dtype"), [(CPU, torch.bfloat16), (DEVICE, torch.float32)])
def test_it_is_not_taken_elsewhere(device: EmulatedCuda, where: Any, dtype: torch.dtype) -> None:
    assert block_trouble(where, dtype, 16, BlockForm()) is not None


def test_it_is_not_taken_where_it_cannot_be_compiled(
    device: EmulatedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(kind: str) -> Any:
        raise ImportError("no triton")

    monkeypatch.setattr("models.flex.kernel", broken)
    assert block_trouble(DEVICE, torch.bfloat16, 16, BlockForm()) is not None


def test_it_is_not_taken_where_it_gives_other_numbers(
    device: EmulatedCuda, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("models.flex.kernel", lambda kind: lambda q, *given, **more: q * 1.0)
    assert block_trouble(DEVICE, torch.bfloat16, 16, BlockForm()) is not None


KINDS = [(ONE, FEW), (FEW, FEW), (ONE, MANY), (FEW, MANY), (MANY, MANY)]  # queries and keys
ROWS = [(1, 1), (2, 1), (2, 2)]  # sequences, and rows of positions
FORMS = [
    BlockForm(*kinds, *rows, *rest)
    for kinds, rows, *rest in itertools.product(KINDS, ROWS, (1, 2), (False, True))
]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_it_is_tried_out_in_every_form_that_has_a_program(device: EmulatedCuda, form: BlockForm) -> None:
    assert block_trouble(DEVICE, torch.bfloat16, 16, form) is None


@pytest.mark.parametrize(
    "wrong",
    [
        {"queries": ONE},
        {"queries": FEW},
        {"queries": FEW, "keys": FEW},
        {"sequences": 1, "rows": 1},
        {"rows": 1},
        {"shared": 2},
        {"gradients": False},
    ],
)
def test_a_form_that_fails_is_not_taken_and_others_are(
    device: EmulatedCuda, monkeypatch: pytest.MonkeyPatch, wrong: dict[str, Any]
) -> None:
    form = BlockForm()._replace(**wrong)

    def kernel(q: Tensor, keys: Tensor, values: Tensor, *, block_mask: Any, enable_gqa: bool) -> Tensor:
        has_few = keys.shape[2] <= BLOCK
        sizes = q.shape[2], FEW if has_few else MANY, q.shape[0], block_mask.shape[0]
        if (*sizes, q.shape[1] // keys.shape[1], q.requires_grad) == form:
            raise RuntimeError("NYI: this form\nand a trace")
        return flex(q, keys, values, block_mask=block_mask, enable_gqa=enable_gqa)

    monkeypatch.setattr("models.flex.kernel", lambda kind: kernel)
    assert block_trouble(DEVICE, torch.bfloat16, 16, form) == "RuntimeError: NYI: this form"
    assert block_trouble(DEVICE, torch.bfloat16, 16, BlockForm()) is None


@pytest.mark.parametrize(
    ("sequences", "rows", "count", "before", "form"),
    [
        (1, 1, 1, 0, (ONE, FEW, 1, 1)),
        (3, 3, 1, 128, (ONE, MANY, 2, 2)),
        (3, 1, 2, 126, (FEW, FEW, 2, 1)),
        (1, 1, 128, 1, (FEW, MANY, 1, 1)),
        (2, 2, 129, 0, (MANY, MANY, 2, 2)),
    ],
)
def test_queries_are_of_the_form_that_is_tried_out_for_them(
    sequences: int, rows: int, count: int, before: int, form: tuple[int, ...]
) -> None:
    positions = torch.zeros(rows, count)
    with torch.no_grad():
        found = BlockForm.of(positions, [torch.zeros(1, before), positions], sequences, shared=4)
    assert found == (*form, 4, False)


@pytest.mark.parametrize(
    ("name", "flags", "dtype", "line"),
    [
        ("adm", (), "bfloat16", "note: no FlexAttention (ImportError: no triton): attention of fewer"),
        ("base", ("--attention_window_length", "5"), "bfloat16", "note: no FlexAttention (ImportError"),
        (
            "lncot",
            (),
            "float32",
            "note: no flash attention (it is for half precision, not float32): attention is the reference",
        ),
        ("lncot", ("--n_embd", "48"), "bfloat16", "note: no flash attention (heads of 12 features, which"),
        ("base", ("--block", "modern", "--window_pattern", "SL"), "bfloat16", "note: no FlexAttention"),
        ("base", (), "float32", ""),
        ("lncot", (), "bfloat16", ""),
        ("adm", ("--attention", "reference"), "bfloat16", ""),
    ],
)
def test_the_first_lines_tell_what_the_device_does_not_have(
    device: EmulatedCuda,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    flags: tuple[str, ...],
    dtype: str,
    line: str,
) -> None:
    def broken(kind: str) -> Any:
        raise ImportError("no triton")

    monkeypatch.setattr("models.flex.kernel", broken)
    model = tiny_model(name, *flags).to("cuda")
    with torch.autocast("cuda", getattr(torch, dtype), enabled=dtype != "float32"):
        told = model.planner(2).describe_slow(DEVICE)
    assert len(told) == bool(line) and "".join(told).startswith(line)


def test_a_trial_that_fails_is_told_of_once(device: EmulatedCuda, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(kind: str) -> Any:
        raise RuntimeError("NYI: of ours")

    told: list[str] = []
    monkeypatch.setattr("models.trials.log.warning", told.append)
    monkeypatch.setattr("models.flex.kernel", broken)
    for _ in range(2):
        block_trouble(DEVICE, torch.bfloat16, 16, BlockForm(queries=ONE, gradients=False))
    block_trouble(DEVICE, torch.float32, 16, BlockForm())
    assert told == [
        "note: FlexAttention of one query, many keys, several sequences, without gradients was tried out and"
        " is not used:"
        " RuntimeError: NYI: of ours"
    ]


def test_heads_that_flash_attention_refuses_go_in_blocks(device: EmulatedCuda) -> None:
    assert run(device, "lncot", "--n_embd", "48")[2] > 0


def run(
    device: EmulatedCuda, name: str, *flags: Any, train: bool = False, **values: Any
) -> tuple[Tensor, Tensor, int]:
    """Loss on the device in bfloat16, that of the CPU in float32, and calls of FlexAttention."""
    losses = []
    for where in ("cpu", "cuda"):
        model = tiny_model(name, *flags, **values).to(where)
        idx = tokens(2, 16).to(where)
        context = torch.autocast("cuda", torch.bfloat16) if where == "cuda" else nullcontext()
        with context:
            losses.append(model(idx, targets=idx)["loss"])
    device_loss = losses[1]
    device_loss.backward()
    return held(device_loss.detach()), losses[0].detach(), device.calls["flex"]


ROUTED = {"eval_length_factor": [0.6, 0.3], "n_repeat": 3}


@pytest.mark.parametrize(
    ("name", "flags", "values"),
    [
        ("adm", (), ROUTED),
        ("lncot", ("--attention_window_length", "5"), {}),
        ("base", ("--attention_window_length", "5"), {}),
        ("adm", ("--block", "modern", "--n_kv_head", "2"), ROUTED),
    ],
)
def test_models_take_it_in_the_place_of_a_mask(
    device: EmulatedCuda, name: str, flags: tuple[str, ...], values: dict[str, Any]
) -> None:
    found, truth, calls = run(device, name, *flags, **values)
    assert calls > 0 and float(found) == pytest.approx(float(truth), abs=0.02)


def test_a_model_of_reference_attention_does_not_take_it(device: EmulatedCuda) -> None:
    assert run(device, "adm", "--attention", "reference", **ROUTED)[2] == 0


@pytest.mark.parametrize("lengths", [(7, 7), (7, 4)])
def test_generation_in_half_precision_takes_it(device: EmulatedCuda, lengths: tuple[int, int]) -> None:
    """One token after prompts, of equal lengths and of others."""
    made = []
    for where in ("cpu", "cuda"):
        model = tiny_model("lncot").to(where)
        cache = GenerationCache(model.settings, 2)
        context = torch.autocast("cuda", torch.bfloat16) if where == "cuda" else nullcontext()
        with torch.no_grad(), context:
            positions = torch.arange(7).repeat(2, 1)
            positions[1, lengths[1] :] = cache.nowhere
            is_ragged = lengths[0] != lengths[1]
            cache.begin(positions.to(where), 7, is_ragged)
            model.run(tokens(2, 7).to(where), cache)
            device.calls.clear()
            cache.begin(torch.tensor(lengths, device=where).unsqueeze(1), 8, is_ragged)
            made.append(held(model.run(tokens(2, 1).to(where), cache).states))
    assert device.calls["flex"] > 0
    assert torch.allclose(made[1].float(), made[0], atol=0.15)


@pytest.fixture
def programs() -> Iterator[list[Any]]:
    """Those that torch.compile makes."""
    torch.compiler.reset()
    with dynamo.patch(recompile_limit=8):
        yield []
    torch.compiler.reset()


def test_one_program_serves_all_numbers_of_tokens_passes_and_windows(programs: list[Any]) -> None:
    """Among them as many sequences as blocks: torch would take these for one size."""

    def backend(graph: torch.fx.GraphModule, example: Any) -> Any:
        programs.append(graph)
        return graph.forward

    attention = compiled(backend)
    for batch, count, passes, window in (
        (2, 150, 1, None),
        (3, 290, 2, 40),
        (4, 137, 3, None),
        (2, 280, 2, 9),
    ):
        queries = torch.arange(count).expand(batch, -1)
        keys = [WHOLE, *[queries] * passes]
        q, k, v = (torch.randn(batch, 4, n, 16) for n in (count, *[300 + count * passes] * 2))
        attention(q, k, v, block_mask=block_mask(queries, keys, window), enable_gqa=False)
    assert len(programs) == 1


def test_torch_does_not_give_up_compiling_after_few_programs(programs: list[Any]) -> None:
    """It would go on without, and hold the scores of all pairs."""
    compiled("eager")
    assert dynamo.recompile_limit == PROGRAMS
