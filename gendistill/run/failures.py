"""Errors of a run for which memory or disk space does not suffice, as one sentence that names the settings to change."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from gendistill.methods import RunConfig, recipe_of
from gendistill.methods.method_registry import may_be_lora
from gendistill.metrics.cost.measured_memory import ran_out
from gendistill.runtime.files import DISK, as_os_error
from gendistill.training.checkpoint import Checkpoints


@contextmanager
def user_errors(config: RunConfig, num_processes: int) -> Iterator[None]:
    """Raise ValueError if memory or disk space runs out inside the context."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError, SafetensorError) as error:
        if ran_out(error):
            raise ValueError(out_of_memory(config, num_processes)) from error
        os_error = as_os_error(error)
        if os_error is None or os_error.errno not in DISK:
            raise
        raise ValueError(out_of_disk(config, os_error)) from error


def out_of_memory(config: RunConfig, num_processes: int = 1) -> str:
    """The message with settings that save memory, ordered by their effect on the result, the smallest first."""
    trainer, remedies = config.trainer, []
    batch_size = trainer.batch_size // num_processes  # of one process
    divisors = [count for count in range(trainer.gradient_accumulation_steps + 1, batch_size + 1) if batch_size % count == 0]
    if divisors:
        remedies.append(f"trainer.gradient_accumulation_steps={next((n for n in divisors if n % 2 == 0), divisors[0])}")
    supports = recipe_of(config).supports
    if not trainer.gradient_checkpointing and supports.gradient_checkpointing:
        remedies.append("trainer.gradient_checkpointing=true")
    if trainer.mixed_precision == "no" and config.device != "cpu":
        remedies.append("trainer.mixed_precision=bf16")
    if config.dtype == "float32" and config.device != "cpu" and supports.gradient_checkpointing:
        remedies.append("dtype=bfloat16")
    if not supports.gradient_checkpointing:
        remedies.append(f"trainer.batch_size={max(1, trainer.batch_size // 2)}")
    elif not config.lora.enabled and may_be_lora(config):
        remedies.append("lora.enabled=true")
    elif config.lora.enabled and config.lora.rank > 8:
        remedies.append(f"lora.rank={config.lora.rank // 2}")
    settings = ", then ".join(f"--set {remedy}" for remedy in remedies) or "a smaller teacher or data.resolution"
    return f"out of memory at trainer.batch_size {trainer.batch_size}; expects {settings}, until it fits"


def out_of_disk(config: RunConfig, error: OSError) -> str:
    """The message with the path that cannot be written, the space that a checkpoint needs, and the checkpoint that is kept."""
    run = Path(config.out).expanduser()
    path = Path(error.filename) if isinstance(error.filename, str) else run
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    checkpoints = Checkpoints(run / "checkpoints")
    free = shutil.disk_usage(existing).free
    text = f"{path} cannot be written: {(error.strerror or str(error)).lower()}, {_megabytes(free)} free"
    if not (steps := checkpoints.steps()):
        return f"{text}. Free disk space there, or set another out, and start again"
    size = sum(file.stat().st_size for file in (checkpoints.folder / steps[-1]).iterdir())
    return f"{text}; a checkpoint needs {_megabytes(size)}. Free disk space there and resume with --resume: {steps[-1]} is kept"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
