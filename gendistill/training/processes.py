"""The processes of a run, as `accelerate launch` started them; without it there is one."""

from __future__ import annotations

import logging
import os
from datetime import timedelta

import torch
from accelerate import PartialState
from accelerate.utils import gather
from torch import Tensor

from gendistill.training.trainer_config import TrainerConfig

logger = logging.getLogger(__name__)

# By default a process that waits for another is ended after 10 minutes (NCCL) or 30 (gloo). Encoding a large data set and
# reading a reference take longer, and only one process does them.
TIMEOUT = timedelta(hours=12)


def join_processes(config: TrainerConfig, device: str) -> PartialState:
    """This process among the others, on a device of its own.

    Raises:
        ValueError: the batch cannot be shared out evenly.
    """
    if device.startswith("cuda:"):
        torch.cuda.set_device(device)
    state = PartialState(cpu=device == "cpu", timeout=TIMEOUT)
    if state.num_processes == 1 and os.environ.get("ACCELERATE_USE_CPU") == "True" and "MASTER_ADDR" in os.environ:
        logger.warning(
            "accelerate launch --cpu has started one process: it needs MPI for more; "
            "--config_file configs/accelerate/cpu.yaml does without"
        )
    multiple = state.num_processes * config.gradient_accumulation_steps
    if config.batch_size % multiple:
        fits = max(1, round(config.batch_size / multiple)) * multiple
        raise ValueError(
            f"trainer.batch_size {config.batch_size}: expects a multiple of the processes ({state.num_processes}) times "
            f"trainer.gradient_accumulation_steps ({config.gradient_accumulation_steps}), such as {fits}"
        )
    return state


def share(count: int) -> list[int]:
    """Which of `count` pieces of work this process does: as many as each other process, some twice if need be."""
    state = PartialState()
    each = -(-count // state.num_processes)
    return [number % count for number in range(state.process_index * each, (state.process_index + 1) * each)]


def gathered(pieces: Tensor, count: int) -> Tensor:
    """All `count` pieces (count, ...) in order, on the CPU of every process, from what each did of its `share`."""
    state = PartialState()
    return pieces if state.num_processes == 1 else gather(pieces.to(state.device))[:count].cpu()
