"""Tensors of the device that tests/emulated_cuda.py emulates, and what happened on it."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

CPU, DEVICE = torch.device("cpu"), torch.device("cuda", 0)


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
    overwritten: list[tuple[Tensor, Tensor]] = field(default_factory=list)  # then: memory, and what it held
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

    def undo(self) -> None:
        """A capture computes nothing: what it wrote into memory of before is taken back."""
        for memory, before in reversed(self.overwritten):
            memory.copy_(before)
        self.overwritten.clear()

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
