"""The processes of a run, started by `accelerate launch`; without it there is one process."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from datetime import timedelta

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedType, gather
from torch import Tensor, distributed, nn

from gendistill.configs import ACCELERATE
from gendistill.training.trainer_config import TrainerConfig

logger = logging.getLogger(__name__)

# By default a process that waits for another times out after 10 minutes (NCCL) or 30 (gloo). Encoding a large data set and
# reading a reference take longer, and are done by one process.
TIMEOUT = timedelta(hours=12)


def join_processes(config: TrainerConfig, device: str) -> PartialState:
    """Initialise this process of a distributed run, with its own device.

    Raises:
        ValueError: the batch cannot be divided evenly among the processes.
    """
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)
    state = PartialState(cpu=device == "cpu", timeout=TIMEOUT)
    if state.num_processes == 1 and os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in os.environ:
        logger.warning(
            "accelerate launch --cpu has started one process, since several need MPI; "
            f"--config_file {ACCELERATE['cpu']} works without MPI"
        )
    multiple = state.num_processes * config.gradient_accumulation_steps
    if config.batch_size % multiple:
        nearest = max(1, round(config.batch_size / multiple)) * multiple
        raise ValueError(
            f"trainer.batch_size {config.batch_size}: expects a multiple of the processes ({state.num_processes}) times "
            f"trainer.gradient_accumulation_steps ({config.gradient_accumulation_steps}), such as {nearest}"
        )
    return state


def adds_up_gradients(config: TrainerConfig, accelerator: Accelerator) -> bool:
    """Whether the trainer adds up the gradients of all processes (`mean_gradients`) instead of DDP.

    DDP does so in the backward pass of the last forward pass. Where a batch is split, the backward passes of the other
    micro-batches may follow that one, and would not be counted.
    """
    several = accelerator.num_processes > 1 and config.gradient_accumulation_steps > 1
    return several and accelerator.distributed_type != DistributedType.FSDP


def mean_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace each gradient by its mean over all processes."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for pending in [distributed.all_reduce(gradient, async_op=True) for gradient in gradients]:
        pending.wait()
    torch._foreach_div_(gradients, distributed.get_world_size())


def equal_buffers(buffers: Iterable[Tensor]) -> None:
    """Copy buffers, such as running statistics, from the first process to all, as DDP does before a forward pass."""
    for buffer in buffers:
        distributed.broadcast(buffer, 0)


def items_of_process(count: int) -> list[int]:
    """The indices, of `count` items, that this process works on; equally many for each process, so that some may repeat."""
    state = PartialState()
    each = -(-count // state.num_processes)
    return [index % count for index in range(state.process_index * each, (state.process_index + 1) * each)]


def of_all_processes(rows: Tensor) -> Tensor:
    """The rows (N, ...) of all processes, equally many of each, on every process."""
    return rows if PartialState().num_processes == 1 else gather(rows)


def gathered(results: Tensor, count: int) -> Tensor:
    """The results (count, ...) of all items in order, on the CPU of every process, from those of its `items_of_process`."""
    state = PartialState()
    return results if state.num_processes == 1 else gather(results.to(state.device))[:count].cpu()
