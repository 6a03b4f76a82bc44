"""Peak memory of a computation, measured on the meta device from the shapes, without computing or loading anything."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.graph import _engine_run_backward
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

CONVOLUTIONS = (torch.ops.aten.convolution.default, torch.ops.aten.convolution_backward.default)


def peak_bytes(work: Callable[[], object], *, copies_of_convolutions: bool = False) -> int:
    """Peak of the bytes of all live tensors that `work` has created.

    Tensors from before, such as weights and inputs, are not counted. Attention is counted as torch's fused kernels, which never
    hold the attention matrix.

    Args:
        work: a computation on the meta device.
        copies_of_convolutions: count the copies of input, output and weights that oneDNN makes for a convolution in its own
            memory format on a CPU.
    """
    counted = LiveBytes(copies_of_convolutions)
    with counted, FusedAttention():
        work()
    return counted.peak


def bytes_of(modules: Iterable[nn.Module]) -> int:
    """Bytes of all weights and buffers; shared ones are counted once."""
    tensors = {id(tensor): tensor for module in modules for tensor in (*module.parameters(), *module.buffers())}
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors.values())


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of storages from their creation to their release.

    Attributes:
        live: bytes at present.
        peak: maximum of `live`.
        counted: the counted storages.

    Args:
        copies: count the copies of convolutions.
        device: type of the device whose storages are counted.
    """

    def __init__(self, copies: bool = False, device: str = "meta") -> None:
        super().__init__()
        self.copies, self.device = copies, device
        self.live = self.peak = 0
        self.counted: weakref.WeakSet[Any] = weakref.WeakSet()
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        for tensor in tree_leaves((args, kwargs)):
            if isinstance(tensor, Tensor):
                self._known.add(tensor.untyped_storage())  # created before the measurement
        output = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(output):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self._known:
                self._known.add(storage)
                if storage.device.type != self.device:
                    continue
                self.counted.add(storage)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._release, storage.nbytes())
        copies = 0
        if self.copies and func in CONVOLUTIONS:
            copies = sum(t.numel() * t.element_size() for t in tree_leaves((args, output)) if isinstance(t, Tensor))
        self.peak = max(self.peak, self.live + copies)
        return output

    def _release(self, size: int) -> None:
        self.live -= size


class FusedAttention(TorchFunctionMode):
    """Computes attention on the meta device as one operation that saves the same tensors as torch's fused kernels.

    torch would choose the kernel with the full matrix there. On other devices nothing changes. Like all modes it applies to
    the thread that enters it.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        arguments = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **arguments)
        if func is Tensor.backward:
            return self._backward(*args, **arguments)
        return func(*args, **arguments)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
        if not query.is_meta:
            return F.scaled_dot_product_attention(query, key, value, *args, **kwargs)
        return _Attention.apply(query, key, value)

    def _backward(
        self, loss: Tensor, gradient: Tensor | None, retain_graph: bool | None, create_graph: bool, inputs: Any
    ) -> None:
        """`loss.backward(...)` with this mode active, so that it handles the attention that gradient checkpointing recomputes.

        torch disables the mode while it handles a function, including `torch.autograd.backward`, but not its engine.
        """
        with self:
            _engine_run_backward(
                (loss,),
                (torch.ones_like(loss) if gradient is None else gradient,),
                create_graph if retain_graph is None else retain_graph,
                create_graph,
                tuple(inputs or ()),
                allow_unreachable=True,
                accumulate_grad=True,
            )


class _Attention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        output = query.new_empty((*query.shape[:-1], value.shape[-1]))
        rows = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, output, rows)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
