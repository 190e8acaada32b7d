"""Attention kernels of the device that tests/emulated_cuda.py emulates, with what they demand."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.emulated_tensors import DeviceTensor, EmulatedCuda, held, on_the_device

aten = torch.ops.aten
HALF = (torch.float16, torch.bfloat16)
LARGEST_HEAD = 256


# flash attention


def check_flash_inputs(q: Tensor, k: Tensor, v: Tensor) -> None:
    if not all(isinstance(each, DeviceTensor) for each in (q, k, v)):
        raise RuntimeError("flash attention: query, key and value must be on the device")
    if q.dtype not in HALF:
        raise RuntimeError("FlashAttention only support fp16 and bf16 data type")
    if k.dtype != q.dtype or v.dtype != q.dtype:
        raise RuntimeError("query, key and value must have the same dtype")
    if any(each.dim() != 4 or each.stride(-1) != 1 for each in (q, k, v)):
        raise RuntimeError("Input tensor must have contiguous last dimension")
    if q.shape[-1] % 8 or q.shape[-1] > LARGEST_HEAD:
        raise RuntimeError("head_size must be a multiple of 8, at most 256")
    if k.shape != v.shape or q.shape[:2] != k.shape[:2] or q.shape[3] != k.shape[3]:
        raise RuntimeError("shapes of query, key and value do not fit")


def scores_of(q: Tensor, k: Tensor, is_causal: bool, scale: float | None) -> Tensor:
    """Scaled scores (B, H, T, K) in float32, -inf where a query does not see a key."""
    scores = (q.float() @ k.float().mT) * (q.shape[-1] ** -0.5 if scale is None else scale)
    queries, keys = scores.shape[-2:]
    if is_causal and queries > 1:
        unseen = torch.ones(queries, keys, dtype=torch.bool).triu(keys - queries + 1)
        scores.masked_fill_(unseen, -math.inf)
    return scores


def flash(
    cuda: EmulatedCuda,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    return_debug_mask: bool = False,
    *,
    scale: float | None = None,
) -> tuple[Any, ...]:
    check_flash_inputs(q, k, v)
    if dropout_p:
        raise NotImplementedError("dropout is not emulated")
    cuda.calls["flash"] += 1
    scores = scores_of(q.held, k.held, is_causal, scale)  # type: ignore[attr-defined]
    lse = scores.logsumexp(-1)
    weights = (scores - lse.unsqueeze(-1)).exp().nan_to_num(0.0)
    # the kernels' output lies as (B, T, H, Dh)
    out = (weights @ v.held.float()).to(q.dtype).transpose(1, 2).contiguous().transpose(1, 2)  # type: ignore[attr-defined]
    seeds = torch.zeros(2, dtype=torch.uint64), torch.zeros((), dtype=torch.uint64)
    tensors = on_the_device((out, lse, *seeds, torch.empty(0, dtype=q.dtype)))
    return (*tensors[:2], None, None, q.shape[2], k.shape[2], *tensors[2:])


def flash_backward(
    cuda: EmulatedCuda,
    grad_out: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    cum_seq_q: Tensor | None,
    cum_seq_k: Tensor | None,
    max_q: int,
    max_k: int,
    dropout_p: float,
    is_causal: bool,
    philox_seed: Tensor,
    philox_offset: Tensor,
    *,
    scale: float | None = None,
) -> tuple[Tensor, ...]:
    check_flash_inputs(q, k, v)
    if grad_out.shape != q.shape or out.shape != q.shape:
        raise RuntimeError("output and its gradient must have the query's shape")
    if grad_out.dtype != q.dtype or out.dtype != q.dtype:
        raise RuntimeError("output and its gradient must have the query's dtype")
    if lse.dtype != torch.float32 or lse.shape != q.shape[:3] or not lse.is_contiguous():
        raise RuntimeError("the log-sum-exp must be dense (B, H, T) in float32")
    if (max_q, max_k) != (q.shape[2], k.shape[2]):
        raise RuntimeError(f"{max_q} queries and {max_k} keys were told, not {q.shape[2]} and {k.shape[2]}")
    if not all(isinstance(each, DeviceTensor) for each in (grad_out, out, lse, philox_seed, philox_offset)):
        raise RuntimeError("Expected all tensors to be on the same device")
    if cum_seq_q is not None or cum_seq_k is not None or dropout_p:
        raise NotImplementedError("sequences of several lengths, and dropout, are not emulated")
    cuda.calls["flash backward"] += 1
    q_, k_, v_, out_, grad = (each.float() for each in held((q, k, v, out, grad_out)))
    weights = (scores_of(q_, k_, is_causal, scale) - held(lse).unsqueeze(-1)).exp()
    share = weights * (grad @ v_.mT - (grad * out_).sum(-1, keepdim=True))
    share *= q.shape[-1] ** -0.5 if scale is None else scale
    grads = (share @ k_, share.mT @ q_, weights.mT @ grad)
    return on_the_device(tuple(each.to(q.dtype) for each in grads))


KERNELS = {
    aten._scaled_dot_product_flash_attention.default: flash,
    aten._scaled_dot_product_flash_attention_backward.default: flash_backward,
}


# FlexAttention


def seen_in_blocks(blocks: Any, shape: tuple[int, int, int]) -> Tensor:
    """Which queries see which keys, (B, 1, T, K): in blocks that are listed as whole all, in others that are
    listed those of the rule. shape: B, T and K.
    """
    batch, queries, keys = (torch.arange(size, device="cuda") for size in shape)
    rule = blocks.mask_mod(batch[:, None, None, None], 0, queries[:, None], keys)
    listed = []
    for counts, indices in (
        (blocks.kv_num_blocks, blocks.kv_indices),
        (blocks.full_kv_num_blocks, blocks.full_kv_indices),
    ):
        if counts.dtype != torch.int32 or indices.dtype != torch.int32:
            raise RuntimeError("blocks must be counted and listed in int32")
        order = torch.arange(indices.shape[-1], device="cuda")
        chosen = torch.zeros_like(indices, dtype=torch.bool)
        chosen = chosen.scatter(-1, indices.long(), order < counts.unsqueeze(-1))
        size_q, size_k = blocks.BLOCK_SIZE
        wide = chosen.repeat_interleave(size_q, -2).repeat_interleave(size_k, -1)
        listed.append(wide[:, :, : shape[1], : shape[2]])
    return (listed[0] & rule) | listed[1]


def flex(q: Tensor, k: Tensor, v: Tensor, *, block_mask: Any, enable_gqa: bool) -> Tensor:
    if not all(isinstance(each, DeviceTensor) for each in (q, k, v)):
        raise RuntimeError("FlexAttention: query, key and value must be on the device")
    if k.dtype != q.dtype or v.dtype != q.dtype:
        raise RuntimeError("FlexAttention: query, key and value must have the same dtype")
    if block_mask.seq_lengths != (q.shape[2], k.shape[2]) or block_mask.shape[0] not in (1, len(q)):
        raise RuntimeError("FlexAttention: the block mask is of other shapes")
    if enable_gqa:
        k, v = (each.repeat_interleave(q.shape[1] // k.shape[1], dim=1) for each in (k, v))
    seen = seen_in_blocks(block_mask, (len(q), q.shape[2], k.shape[2]))
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen)
