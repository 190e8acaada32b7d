"""main.py on a machine whose CPU passes for a GPU with products in FP8, for networks that are small:

    python -m tests.with_fp8 --fp8 --dtype bfloat16 ...

torch's own product of FP8 on CPUs is slow, and takes any layout. The one here takes what the kernels of GPUs
take by their documentation.
"""

from __future__ import annotations

from unittest import mock

import torch
from torch import Tensor

from models import fp8

SMALLEST_SIDE = 16


def scaled_mm(
    a: Tensor,
    b: Tensor,
    *,
    scale_a: Tensor,
    scale_b: Tensor,
    out_dtype: torch.dtype,
    use_fast_accum: bool,
) -> Tensor:
    """As torch._scaled_mm: a (rows, K) by b (K, columns)."""
    formats = {torch.float8_e4m3fn, torch.float8_e5m2}
    assert {a.dtype, b.dtype} <= formats and torch.float8_e4m3fn in (a.dtype, b.dtype)
    assert a.is_contiguous() and b.t().is_contiguous()
    assert a.shape[1] == b.shape[0] and not any(side % 16 for side in b.shape)
    assert scale_a.dtype == scale_b.dtype == torch.float32
    assert scale_a.is_contiguous() and scale_b.is_contiguous()
    if scale_a.dim():
        assert (scale_a.shape, scale_b.shape) == ((a.shape[0], 1), (1, b.shape[1]))
        assert out_dtype == torch.bfloat16
    else:
        assert scale_b.dim() == 0
    with torch.autocast("cpu", enabled=False):
        return ((a.float() * scale_a) @ (b.float() * scale_b)).to(out_dtype)


def replaced() -> list[mock._patch[object]]:
    """What is another thing where there is such a machine."""
    return [
        mock.patch.object(torch, "_scaled_mm", scaled_mm),
        mock.patch.object(fp8, "lacking", lambda device: None),
        mock.patch.object(fp8, "SMALLEST_SIDE", SMALLEST_SIDE),
    ]


if __name__ == "__main__":
    for patch in replaced():
        patch.start()
    import distributed
    from main import main

    distributed.run_and_end(main)
