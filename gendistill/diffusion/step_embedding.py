"""The number of a student's sampling step as an additional input of a network."""

from __future__ import annotations

from typing import Any

import torch
from diffusers.models.embeddings import TimestepEmbedding
from torch import Tensor, nn

from gendistill.diffusion.trained_networks import AdapterView


class StepEmbedding(nn.Module):
    """A learned vector for each sampling step, added to the embedding of t: 0 at first, where it changes nothing.

    It becomes a part of the network, which is wrapped, sharded and trained with it; on a shared base it is a part of one
    adapter, without effect on the others.

    Args:
        network: any network of diffusers, or an adapter of one.
        count: number of steps.

    Attributes:
        step: the number of the step in the following forward passes, and in their recomputation by gradient checkpointing.

    Raises:
        ValueError: the network has no embedding of t.
    """

    def __init__(self, network: Any, count: int) -> None:
        super().__init__()
        base = network.base if isinstance(network, AdapterView) else network
        embedding = next((module for module in base.modules() if isinstance(module, TimestepEmbedding)), None)
        if embedding is None:
            raise ValueError(f"steps: a {type(base).__name__} has no embedding of t for the number of a step; expects one step")
        width, device = embedding.linear_2.out_features, next(base.parameters()).device
        self.vectors, self.step = nn.Parameter(torch.zeros(count, width, device=device)), 0
        network.step_embedding = self

        def add(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
            active = not isinstance(network, AdapterView) or network.is_active
            return output + self.vectors[self.step].to(output.dtype) if active else output

        hook = embedding.register_forward_hook(add)
        if isinstance(network, AdapterView):
            network.shared.hooks.append(hook)
