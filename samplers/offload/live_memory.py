"""What a computation holds in memory at most, found on the meta device: shapes are followed, nothing is computed or loaded."""

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
    """Bytes of all tensors that `work` has made and not yet let go of, at the moment when they are most.

    What was there before (weights, inputs) is not counted. Attention is taken to be by a kernel that never holds its matrix,
    as torch's are.

    Args:
        work: a computation of tensors on the meta device.
        copies_of_convolutions: count what a convolution holds of its input, output and weights in an order of its own, as
            oneDNN does on a CPU.
    """
    counted = LiveBytes(copies_of_convolutions)
    with counted, FusedAttention():
        work()
    return counted.peak


def bytes_of(modules: Iterable[nn.Module]) -> int:
    """Of all weights and buffers, those that are shared once."""
    found = {id(of): of for module in modules for of in (*module.parameters(), *module.buffers())}
    return sum(of.numel() * of.element_size() for of in found.values())


class LiveBytes(TorchDispatchMode):
    """Counts storages from when they are made to when nobody has them any more: `live` now, `peak` at most; `counted` are they.

    Args:
        copies: count those of convolutions.
        device: whose storages.
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
                self._known.add(tensor.untyped_storage())  # made before: not ours
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and (storage := tensor.untyped_storage()) not in self._known:
                self._known.add(storage)
                if storage.device.type != self.device:
                    continue
                self.counted.add(storage)
                self.live += storage.nbytes()
                weakref.finalize(storage, self._let_go, storage.nbytes())
        beside = 0
        if self.copies and func in CONVOLUTIONS:
            beside = sum(of.numel() * of.element_size() for of in tree_leaves((args, made)) if isinstance(of, Tensor))
        self.peak = max(self.peak, self.live + beside)
        return made

    def _let_go(self, size: int) -> None:
        self.live -= size


class FusedAttention(TorchFunctionMode):
    """Computes attention on the meta device as one operation that keeps what torch's fused kernels keep; elsewhere as usual.

    There torch itself would choose the kernel that holds the full matrix. Like all modes it belongs to the thread that enters
    it.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        given = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **given)
        if func is Tensor.backward:
            return self._backward(*args, **given)
        return func(*args, **given)

    def _attend(self, query: Tensor, key: Tensor, value: Tensor, *args: Any, **given: Any) -> Any:
        if not query.is_meta:
            return F.scaled_dot_product_attention(query, key, value, *args, **given)
        return _Attention.apply(query, key, value)

    def _backward(
        self, loss: Tensor, gradient: Tensor | None, retain_graph: bool | None, create_graph: bool, inputs: Any
    ) -> None:
        """`loss.backward(...)` with this mode active, so that it sees the attention that checkpoints compute again.

        torch leaves the mode while it handles a function, and `torch.autograd.backward` is one too; its engine is none.
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
        made = query.new_empty((*query.shape[:-1], value.shape[-1]))
        rows = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.save_for_backward(query, key, value, made, rows)
        return made

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value, _, _ = ctx.saved_tensors
        return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
