"""The change of a network as a LoRA: truncated singular value decompositions of the changes of its layers' weights.

A truncated decomposition has the smallest error of all matrices of its rank (Eckart & Young 1936).
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn

from gendistill.diffusion.teacher import Teacher
from gendistill.diffusion.trained_networks import AdapterView
from gendistill.samplers.families import network_of
from gendistill.samplers.loras import Matrices

FACTORISED = "factorised"  # name of the adapter
MORE_COLUMNS, ITERATIONS = 16, 4  # of the randomised decomposition of large matrices (Halko et al. 2011, algorithm 4.4)


@dataclass(frozen=True)
class LoraStudent:
    """A student as an adapter in a pipeline.

    Attributes:
        pipeline: the teacher's, or that of its original without LoRAs.
        adapter: the name of the adapter in its network.
        relative_error: Frobenius norm of the error of all weights, relative to that of their change; None for an adapter that
            was trained as it is.
        encoders: matrices of the text encoders' changes by encoder, for a LoRA that carries those of its teacher's LoRAs.
    """

    pipeline: Any
    adapter: str
    relative_error: float | None = None
    encoders: Mapping[str, Matrices] = field(default_factory=dict)


def factorised_student(teacher: Teacher, network: nn.Module, rank: int, original: Any | None = None) -> LoraStudent:
    """The change from a teacher to its student as a LoRA.

    All layers that the LoRAs of the family adapt are factorised, and all other linear layers and convolutions that LoRAs of the
    teacher have changed.

    Args:
        network: the student's, or an adapter on the teacher's.
        original: a pipeline of the teacher without its LoRAs, to which the adapter is added; None for the change from the
            teacher itself.
    """
    if original is None:
        base = copy.deepcopy(teacher.network)
        original = teacher.family.student_pipeline(teacher.pipeline, {teacher.family.network_part: base})
    base = network_of(original)
    before, after = base.state_dict(), merged_weights(network)
    merged, layers = merged_weights(teacher.network), dict(low_rank_layers(base, teacher.family.lora_targets))
    for path, layer in low_rank_layers(base):
        if not torch.equal(before[f"{path}.weight"], merged[f"{path}.weight"].to(before[f"{path}.weight"])):
            layers[path] = layer
    matrices, changed, missed = {}, 0.0, 0.0
    for name, weight in before.items():
        change = after[name].to(weight.device).float() - weight.float()
        changed += float(change.square().sum())
        if (path := name.removesuffix(".weight")) in layers and name.endswith(".weight"):
            matrices[path] = factors(change, rank)
            down, up = (matrix.flatten(1) for matrix in matrices[path])
            change = change.flatten(1) - up @ down
        missed += float(change.square().sum())
    _add_adapter(base, matrices, rank)
    return LoraStudent(original, FACTORISED, sqrt(missed / changed) if changed else 0.0)


def factors(change: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """A (r, in) and B (out, r) whose product is the nearest matrix of rank r to the change (out, in) of a weight.

    For the weight (out, in, k, k) of a convolution A is (r, in, k, k) and B (out, r, 1, 1). Rows of A beyond the smallest
    dimension of the weight are zero.
    """
    matrix = change.flatten(1)
    if min(matrix.shape) > 4 * rank:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            u, s, v = torch.svd_lowrank(matrix, min(rank + MORE_COLUMNS, *matrix.shape), ITERATIONS)
        vh = v.T
    else:
        u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    count = min(rank, len(s))
    root = s[:count].sqrt()
    up, down = matrix.new_zeros(len(matrix), rank), matrix.new_zeros(rank, matrix.shape[1])
    up[:, :count], down[:count] = u[:, :count] * root, root[:, None] * vh[:count]
    trailing = (1,) * (change.dim() - 2)
    return down.view(rank, *change.shape[1:]), up.view(len(matrix), rank, *trailing)


def equal_ranks(pipeline: Any, encoders: Mapping[str, Matrices]) -> dict[str, Matrices]:
    """Matrices of text encoders with zeros up to the highest rank of each, as readers infer one scale from the ranks.

    The layers of CLIP's encoders have the names of published checkpoints, which have `text_model.` in front.
    """
    padded: dict[str, Matrices] = {}
    for name, layers in encoders.items():
        prefix = "text_model." if type(getattr(pipeline, name)).__name__.startswith("CLIPTextModel") else ""
        rank = max(len(down) for down, _ in layers.values())
        padded[name] = {
            f"{prefix}{path.removeprefix(prefix)}": (
                torch.cat([down, down.new_zeros(rank - len(down), down.shape[1])]),
                torch.cat([up, up.new_zeros(len(up), rank - len(down))], 1),
            )
            for path, (down, up) in layers.items()
        }
    return padded


def low_rank_layers(network: nn.Module, targets: Sequence[str] | None = None) -> Iterator[tuple[str, Any]]:
    """The linear layers and convolutions of a network that a LoRA can adapt, by name; of `targets`, PEFT's names of layers."""
    for path, layer in network.named_modules():
        if not isinstance(layer, nn.Linear | nn.Conv2d) or getattr(layer, "groups", 1) > 1:
            continue
        if targets is None or any(path == target or path.endswith(f".{target}") for target in targets):
            yield path, layer


def require_rank(network: nn.Module, targets: Sequence[str], rank: int) -> None:
    """Raise ValueError if no layer of a LoRA has a change of so high a rank."""
    smallest = [min(layer.weight.shape[0], layer.weight[0].numel()) for _, layer in low_rank_layers(network, targets)]
    if rank > max(smallest, default=0):
        raise ValueError(
            f"lora.rank {rank}: is greater than the smallest dimension of every layer, at most {max(smallest, default=0)}; "
            "expects a rank up to that for output=base-lora and output=steps-lora"
        )


def merged_weights(network: nn.Module) -> dict[str, Tensor]:
    """The weights of a network by their names without adapters; those of an adapter on a shared base are merged."""
    base, adapter = (network.base, network.adapter) if isinstance(network, AdapterView) else (network, None)
    weights = {
        name.replace(".base_layer.", "."): tensor.detach() for name, tensor in base.state_dict().items() if ".lora_" not in name
    }
    for path, module in base.named_modules():
        if adapter is not None and isinstance(module, LoraLayer) and adapter in module.lora_A:
            layer: Any = module
            weight = weights[f"{path}.weight"].float()
            weights[f"{path}.weight"] = weight + layer.get_delta_weight(adapter).detach().to(weight)
    return weights


def merged_network(view: AdapterView) -> Any:
    """A copy of a shared base with the adapter merged into its weights."""
    network = type(view.base).from_config(view.base.config)
    network.load_state_dict(merged_weights(view))
    return network.eval()


def _add_adapter(network: Any, matrices: dict[str, tuple[Tensor, Tensor]], rank: int) -> None:
    network.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=sorted(matrices)), FACTORISED)
    for path, (down, up) in matrices.items():
        layer = network.get_submodule(path)
        layer.lora_A[FACTORISED].weight.data = down.contiguous()
        layer.lora_B[FACTORISED].weight.data = up.contiguous()
