"""A CUDA device for tests on machines that have none: its tensors say `device='cuda:0'` and hold their
numbers on the CPU, so that the real code enters every branch that asks for the device, with real values.

    with emulated_cuda() as device:
        model.to("cuda")                        # autocast, GradScaler, fused AdamW, pinned memory as on a GPU
    device.downloads, device.uploads, device.calls

It holds the code to what the kernels demand by their documentation and source:
  flash attention   float16 or bfloat16, one dtype; (B, H, T, Dh) with the last dimension dense, Dh a multiple
                    of 8 up to 256; no mask; in causal order the last query meets the last key, and one query
                    alone sees all keys; log-sum-exp (B, H, T) in float32. Its backward pass takes that
                    log-sum-exp dense, the numbers of queries and keys, and two seeds on the device.
  FlexAttention     one dtype; a block mask of these shapes, whose lists are in int32: of pairs of blocks
                    that are not listed nothing is seen, of those listed as whole all, whatever the rule says
  autocast          products in its dtype, norms, sums, logarithms and the like in float32
  any operation     tensors of one device, but for numbers (0 dimensions) and indices
  cumsum            of floating point, refused where deterministic algorithms are asked for

What it cannot see: speed, memory and rounding of the kernels, asynchronous errors, streams, several devices,
the caching allocator, what torch.compile generates; and what the operations inside one of torch's do.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache, partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

from models.attention import flash_works, flex_works
from models.flex import whole_block_mask

aten = torch.ops.aten
CPU, DEVICE = torch.device("cpu"), torch.device("cuda", 0)
HALF = (torch.float16, torch.bfloat16)
LARGEST_HEAD = 256
# of torch's list of what autocast does on CUDA, as far as this project's models could meet it
IN_ITS_DTYPE = {"linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "scaled_dot_product_attention"}
IN_ITS_DTYPE |= {"__matmul__", "__rmatmul__"}
IN_FLOAT32 = {
    "layer_norm",
    "softmax",
    "log_softmax",
    "cross_entropy",
    "kl_div",
    "norm",
    "sum",
    "prod",
    "cumsum",
}
IN_FLOAT32 |= {
    "exp",
    "expm1",
    "log",
    "log1p",
    "pow",
    "__pow__",
    "__rpow__",
    "reciprocal",
    "rsqrt",
    "softplus",
}
MAY_MIX = {"__getitem__", "__setitem__", "index_put", "index_put_", "copy_"}
MAY_MIX |= {"_has_compatible_shallow_copy_type", "__set__"}
OF_THE_CPU = (
    "_scaled_dot_product_flash_attention_for_cpu",
    "_scaled_dot_product_flash_attention_for_cpu_backward",
)


class DeviceTensor(torch.Tensor):
    """held: its numbers, on the CPU, of the same shape and strides. torch's own core takes it for one of the
    CPU; Python sees the device.
    """

    held: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    device = property(lambda self: DEVICE)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]

    @staticmethod
    def __new__(cls, held: Tensor) -> DeviceTensor:
        return torch.Tensor._make_wrapper_subclass(
            cls,
            held.shape,
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=CPU,
        )

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __repr__(self, **unused: Any) -> str:
        return f"DeviceTensor({self.held!r})"

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["held"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict[str, Tensor], *unused: Any) -> DeviceTensor:
        return DeviceTensor(inner["held"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} on a tensor of the emulated device, which is gone")


def mapped(work: Callable[[Tensor], Any], value: Any) -> Any:
    """A nest of tuples, lists and dicts with `work` done to its tensors; torch's own is many times slower."""
    if isinstance(value, Tensor):
        return work(value)
    if isinstance(value, tuple | list):
        return type(value)([mapped(work, each) for each in value])
    if isinstance(value, dict):
        return {key: mapped(work, each) for key, each in value.items()}
    return value


def tensors_in(value: Any) -> list[Tensor]:
    found: list[Tensor] = []
    mapped(found.append, value)
    return found


def held(value: Any) -> Any:
    """The numbers of all tensors in a nest."""
    return mapped(lambda each: each.held if isinstance(each, DeviceTensor) else each, value)


def on_the_device(value: Any) -> Any:
    """A nest with its tensors on the emulated device."""
    return mapped(lambda each: each if isinstance(each, DeviceTensor) else DeviceTensor(each.detach()), value)


@dataclass
class EmulatedCuda:
    """What happened on the device. downloads: what the host has waited for, in words; uploads: what came from
    memory that is not pinned, or was waited for, likewise; calls: of each attention kernel.
    """

    downloads: list[str] = field(default_factory=list)
    uploads: list[str] = field(default_factory=list)
    calls: Counter[str] = field(default_factory=Counter)
    graph: list[Any] | None = None  # of operations, while one is captured
    warns: bool = False  # of each wait, as torch.cuda.set_sync_debug_mode has it
    generator: Tensor = field(default_factory=lambda: torch.zeros(16, dtype=torch.uint8))  # its state

    def seed(self, seed: int) -> None:
        self.generator = torch.tensor([seed]).view(torch.uint8).repeat(2)

    def restore(self, state: Tensor) -> None:
        self.generator = state.clone()

    def noted(self, work: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        """work(*args, **kwargs), which a graph that is captured will do again, into the same memory."""
        result = work(*args, **kwargs)
        if self.graph is not None:
            self.graph.append((work, args, kwargs, result))
        return result

    def replay(self, graph: list[Any]) -> None:
        self.calls["replay"] += 1
        for work, args, kwargs, result in graph:
            if result is None:  # in place, or a view
                work(*held(args), **held(kwargs))
                continue
            again = work(*args, **kwargs)
            for old, new in zip(tensors_in(result), tensors_in(again), strict=True):
                old.held.copy_(new.held)  # type: ignore[attr-defined]

    def wait(self, kind: list[str], what: str) -> None:
        if self.graph is not None:
            raise RuntimeError(f"operation not permitted when stream is capturing: {what}")
        kind.append(what)
        if self.warns:
            warnings.warn(f"called a synchronizing CUDA operation: {what}", stacklevel=2)


class Functions(TorchFunctionMode):
    """What Python calls: devices, copies between them, autocast."""

    def __init__(self, cuda: EmulatedCuda) -> None:
        super().__init__()
        self.cuda = cuda

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "__get__":  # an attribute
            return func(*args)
        special = FUNCTIONS.get(func)
        if special is not None:
            return special(self.cuda, *args, **kwargs)
        given = tensors_in((args, kwargs))
        if any(isinstance(each, DeviceTensor) for each in given):
            if name in OF_THE_CPU:
                raise NotImplementedError(
                    f"Could not run 'aten::{name}' with arguments from the 'CUDA' backend."
                )
            if name not in MAY_MIX:
                need_one_device(name, given)
            if name == "copy_" and not isinstance(args[0], DeviceTensor):
                self.cuda.wait(self.cuda.downloads, f"copied {tuple(args[0].shape)}")
            if torch.is_autocast_enabled("cpu"):  # which is not the device's, whatever torch's core thinks
                func = torch.autocast("cpu", enabled=False)(func)
            args, kwargs = autocast(name, args, kwargs)
        wanted = kwargs.get("device")
        if wanted is None:
            return func(*args, **kwargs)
        kwargs["device"] = CPU
        result = func(*held(args), **held(kwargs))
        if torch.device(wanted).type != "cuda":
            return result
        if name in ("tensor", "as_tensor"):
            note_upload(self.cuda, result, non_blocking=False)
        return on_the_device(result)


def need_one_device(name: str, given: list[Tensor]) -> None:
    if any(not isinstance(each, DeviceTensor) and each.dim() for each in given):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu!"
            f" (when calling {name})"
        )


def autocast(name: str, args: Any, kwargs: Any) -> Any:
    """Arguments as the autocast of CUDA hands them on."""
    if not torch.is_autocast_enabled("cuda") or name not in IN_ITS_DTYPE | IN_FLOAT32:
        return args, kwargs
    dtype = torch.get_autocast_dtype("cuda") if name in IN_ITS_DTYPE else torch.float32

    def cast(each: Tensor) -> Tensor:
        is_cast = isinstance(each, DeviceTensor) and each.is_floating_point() and each.dtype != torch.float64
        return each.to(dtype) if is_cast else each

    return mapped(cast, (args, kwargs))


# copies between host and device


def to(cuda: EmulatedCuda, x: Tensor, *args: Any, copy: bool = False, **kwargs: Any) -> Tensor:
    """Tensor.to."""
    if args and isinstance(args[0], Tensor):
        args = (args[0].device, args[0].dtype, *args[1:])
    device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **kwargs)
    kind = x.device.type if device is None else device.type
    return moved(cuda, x, kind, dtype or x.dtype, non_blocking, copy)


def moved(
    cuda: EmulatedCuda,
    x: Tensor,
    kind: str,
    dtype: torch.dtype,
    non_blocking: bool = False,
    copy: bool = False,
) -> Tensor:
    if kind == x.device.type:
        return x.to(dtype, copy=copy)
    if kind == "cpu":
        cuda.wait(cuda.downloads, f"to the CPU {tuple(x.shape)}")
        return held(x).to(dtype, copy=True)
    note_upload(cuda, x, non_blocking)
    return DeviceTensor(x.detach().to(dtype, copy=True))


def note_upload(cuda: EmulatedCuda, source: Tensor, non_blocking: bool) -> None:
    """An upload is waited for unless it comes from pinned memory and is not to be."""
    if not (non_blocking and getattr(source, "is_pinned_here", False)):
        cuda.wait(cuda.uploads, f"{source.dtype} {tuple(source.shape)}")


def to_list(cuda: EmulatedCuda, x: Tensor) -> Any:
    if isinstance(x, DeviceTensor):
        cuda.wait(cuda.downloads, f"a list {tuple(x.shape)}")
    return held(x).tolist()


def to_numpy(cuda: EmulatedCuda, x: Tensor, **kwargs: Any) -> Any:
    if isinstance(x, DeviceTensor):
        raise TypeError("can't convert cuda:0 device type tensor to numpy: use Tensor.cpu() first")
    return x.numpy(**kwargs)


def pin(cuda: EmulatedCuda, x: Tensor, device: Any = None) -> Tensor:
    if isinstance(x, DeviceTensor):
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor': only dense CPU tensors can be pinned")
    pinned = x.clone()
    pinned.is_pinned_here = True  # type: ignore[attr-defined]
    return pinned


def run_backward(cuda: EmulatedCuda, outputs: tuple[Tensor, ...], inputs: tuple[Tensor, ...]) -> Any:
    """The backward pass, of whose code (functions, checkpoints) each call is seen: torch's own ways to it
    hide them. inputs: whose gradients are returned; none: those of all leaves are accumulated.
    """
    ones = tuple(torch.ones_like(each) for each in outputs)
    run = torch.autograd.Variable._execution_engine.run_backward
    with Functions(cuda):
        return run(outputs, ones, False, False, inputs, allow_unreachable=True, accumulate_grad=not inputs)


def backward(cuda: EmulatedCuda, x: Tensor, **unused: Any) -> None:
    """Tensor.backward."""
    run_backward(cuda, (x,), ())


def grad(cuda: EmulatedCuda, outputs: Any, inputs: Any, **unused: Any) -> Any:
    """torch.autograd.grad."""
    return run_backward(cuda, (outputs,) if isinstance(outputs, Tensor) else outputs, tuple(inputs))


FUNCTIONS = {
    Tensor.backward: backward,
    torch.autograd.grad: grad,
    Tensor.to: to,
    Tensor.cpu: lambda cuda, x: moved(cuda, x, "cpu", x.dtype),
    Tensor.cuda: lambda cuda, x, *unused: moved(cuda, x, "cuda", x.dtype),
    Tensor.type_as: lambda cuda, x, other: moved(cuda, x, other.device.type, other.dtype),
    Tensor.tolist: to_list,
    Tensor.numpy: to_numpy,
    Tensor.pin_memory: pin,
}


class Operations(TorchDispatchMode):
    """What torch's core runs, on the numbers that tensors of the device hold; and the kernels of CUDA."""

    def __init__(self, cuda: EmulatedCuda) -> None:
        super().__init__()
        self.cuda = cuda

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        kernel = KERNELS.get(func)
        if kernel is not None:
            return self.cuda.noted(partial(kernel, self.cuda), args, kwargs)
        if not any(isinstance(each, DeviceTensor) for each in tensors_in((args, kwargs))):
            return func(*args, **kwargs)
        if func in TELL_THE_HOST or has_mask_index(func, args):
            self.cuda.wait(self.cuda.downloads, str(func))
        is_float_sum = func is aten.cumsum.default and args[0].is_floating_point()
        if is_float_sum and torch.are_deterministic_algorithms_enabled():
            raise RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation")
        if has_aliases(func):
            if self.cuda.graph is not None:
                self.cuda.graph.append((func, args, kwargs, None))
            result = on_the_device(func(*held(args), **held(kwargs)))
            return return_and_correct_aliasing(func, args, kwargs, result)

        def on_numbers(*given: Any, **more: Any) -> Any:
            return on_the_device(func(*held(given), **held(more)))

        return self.cuda.noted(on_numbers, args, kwargs)


@cache
def has_aliases(func: Any) -> bool:
    """Whether an operation writes into what it is given, or returns a view of it."""
    return any(argument.alias_info is not None for argument in func._schema.arguments)


# operations whose result, or its shape, the host must know
TELL_THE_HOST = (
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
)


def has_mask_index(func: Any, args: Any) -> bool:
    """Whether an indexing operation must count the True of a mask first."""
    if func not in (aten.index.Tensor, aten.index_put.default, aten.index_put_.default):
        return False
    return any(index is not None and index.dtype == torch.bool for index in args[1])


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


class Graph:
    """torch.cuda.CUDAGraph: the operations of what was captured, done again on the memory of that time."""

    def __init__(self) -> None:
        self.operations: list[Any] = []

    def pool(self) -> int:
        return id(self)


@contextmanager
def captured(cuda: EmulatedCuda, graph: Graph, pool: Any = None) -> Iterator[None]:
    """torch.cuda.graph."""
    cuda.graph = graph.operations
    try:
        yield
    finally:
        cuda.graph = None


def grouped_by_device(tensors: Any, with_indices: bool = False) -> Any:
    """As torch groups an optimiser's tensors, by the devices that Python sees."""
    found = _group_tensors(tensors, with_indices)
    has_device = any(isinstance(each, DeviceTensor) for each in tensors[0])
    return {(DEVICE if has_device else device, dtype): group for (device, dtype), group in found.items()}


_group_tensors = torch._C._group_tensors_by_device_and_dtype


@contextmanager
def emulated_cuda() -> Iterator[EmulatedCuda]:
    """A machine with one CUDA device."""
    cuda = EmulatedCuda()
    card = SimpleNamespace(name="an emulated H100", total_memory=80 * 2**30, major=9, minor=0)
    answers = {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": lambda device: None,
        "synchronize": lambda device=None: None,
        "empty_cache": lambda: None,
        "get_device_name": lambda device=None: card.name,
        "get_device_properties": lambda device=None: card,
        "is_bf16_supported": lambda including_emulation=True: True,
        "max_memory_allocated": lambda device=None: 123 * 2**20,
        "memory_allocated": lambda device=None: 100 * 2**20,
        "reset_peak_memory_stats": lambda device=None: None,
        "set_per_process_memory_fraction": lambda fraction, device=None: None,
        "set_sync_debug_mode": lambda mode: setattr(cuda, "warns", mode == "warn"),
        "get_rng_state": lambda device="cuda": cuda.generator.clone(),
        "set_rng_state": lambda state, device="cuda": cuda.restore(state),
        "manual_seed_all": cuda.seed,
        "_lazy_init": lambda: None,
        "Stream": lambda: SimpleNamespace(wait_stream=lambda other: None),
        "current_stream": lambda: SimpleNamespace(wait_stream=lambda other: None),
        "stream": lambda stream: nullcontext(),
        "graph": partial(captured, cuda),
        "CUDAGraph": type("CUDAGraph", (Graph,), {"replay": lambda graph: cuda.replay(graph.operations)}),
    }

    def compiled(kind: str) -> Callable[..., Tensor]:
        def call(*given: Any, **more: Any) -> Tensor:
            cuda.calls["flex"] += 1
            return flex(*given, **more)

        return call

    tried = flash_works, flex_works, whole_block_mask
    with ExitStack() as stack:
        for function in tried:
            function.cache_clear()
            stack.callback(function.cache_clear)
        patches = [mock.patch.object(torch.cuda, name, answer) for name, answer in answers.items()]
        patches += [
            mock.patch("models.flex.kernel", compiled),
            mock.patch.object(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
            mock.patch.object(torch._C, "_group_tensors_by_device_and_dtype", grouped_by_device),
        ]
        for patch in patches:
            stack.enter_context(patch)
        stack.enter_context(Functions(cuda))
        stack.enter_context(Operations(cuda))
        yield cuda
