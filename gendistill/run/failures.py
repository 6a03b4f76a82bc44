"""What the machine refuses a run, memory or disk, in one sentence that names the settings to change."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors import SafetensorError

from gendistill.methods import RunConfig, recipe_of
from gendistill.methods.method_registry import may_be_lora
from gendistill.metrics.cost.measured_memory import ran_out
from gendistill.training.checkpoint import Checkpoints, as_os_error

DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


@contextmanager
def user_errors(config: RunConfig, num_processes: int) -> Iterator[None]:
    """Raises ValueError where memory or the disk runs out within."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not ran_out(error):
            raise
        raise ValueError(out_of_memory(config, num_processes)) from error
    except (OSError, SafetensorError) as error:
        refused = as_os_error(error)
        if refused is None or refused.errno not in DISK:
            raise
        raise ValueError(out_of_disk(config, refused)) from error


def out_of_memory(config: RunConfig, num_processes: int = 1) -> str:
    """What would fit, the least change to the result first."""
    trainer, remedies = config.trainer, []
    share = trainer.batch_size // num_processes
    finer = [parts for parts in range(trainer.gradient_accumulation_steps + 1, share + 1) if share % parts == 0]
    if finer:
        remedies.append(f"trainer.gradient_accumulation_steps={next((n for n in finer if n % 2 == 0), finer[0])}")
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
    """Where there is no room, how much is needed, and what is kept."""
    run = Path(config.out)
    where = Path(error.filename) if isinstance(error.filename, str) else run
    there = next(folder for folder in (where, *where.absolute().parents) if folder.exists())
    checkpoints = Checkpoints(run / "checkpoints")
    free = shutil.disk_usage(there).free
    text = f"{where} cannot be written: {(error.strerror or str(error)).lower()}, {_megabytes(free)} free"
    if not (steps := checkpoints.steps()):
        return f"{text}. Make room there, or take another out, and start again"
    size = sum(file.stat().st_size for file in (checkpoints.folder / steps[-1]).iterdir())
    return f"{text}; a checkpoint takes {_megabytes(size)}. Make room there and go on with --resume: {steps[-1]} is kept"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
