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

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache, partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing

from models.flex import whole_block_mask
from models.trials import block_trouble, flash_trouble
from tests.emulated_kernels import KERNELS, flex
from tests.emulated_tensors import (
    CPU,
    DEVICE,
    DeviceTensor,
    EmulatedCuda,
    held,
    mapped,
    on_the_device,
    tensors_in,
)

aten = torch.ops.aten
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
                memory = held(written(func, args, kwargs))
                self.cuda.overwritten += [(each, each.clone()) for each in tensors_in(memory)]
            result = on_the_device(func(*held(args), **held(kwargs)))
            return return_and_correct_aliasing(func, args, kwargs, result)

        def on_numbers(*given: Any, **more: Any) -> Any:
            return on_the_device(func(*held(given), **held(more)))

        return self.cuda.noted(on_numbers, args, kwargs)


@cache
def has_aliases(func: Any) -> bool:
    """Whether an operation writes into what it is given, or returns a view of it."""
    return any(argument.alias_info is not None for argument in func._schema.arguments)


def written(func: Any, args: Any, kwargs: Any) -> list[Any]:
    """What an operation writes into, of what it is given."""
    found = []
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            found.append(args[place] if place < len(args) else kwargs.get(argument.name))
    return found


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


class Graph:
    """torch.cuda.CUDAGraph: the operations of what was captured, done again on the memory of that time."""

    def __init__(self) -> None:
        self.operations: list[Any] = []

    def pool(self) -> int:
        return id(self)


@contextmanager
def captured(cuda: EmulatedCuda, graph: Graph, **unused: Any) -> Iterator[None]:
    """torch.cuda.graph, which computes and draws nothing."""
    cuda.graph = graph.operations
    try:
        with torch.random.fork_rng([]):
            yield
    finally:
        cuda.graph = None
        cuda.undo()


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

    tried = flash_trouble, block_trouble, whole_block_mask
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
