"""What the machine refuses is one sentence; tests/run/test_crash.py fills real disks and real memory."""

import errno

import pytest
import torch
from safetensors import SafetensorError

from gendistill.run.config import load_config
from gendistill.run.failures import out_of_memory, user_errors


def config(tmp_path, **settings):
    return load_config(
        None, {"out": str(tmp_path / "run")} | {name.replace("__", "."): value for name, value in settings.items()}
    )


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory: you tried ..."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:80] data. DefaultCPUAllocator: not enough memory: you tried to allocate"),
    ],
)
def test_memory_that_runs_out_is_a_mistake_of_the_settings(tmp_path, error):
    with pytest.raises(ValueError, match=r"^out of memory at trainer\.batch_size 32; expects --set "):
        with user_errors(config(tmp_path), 1):
            raise error


def test_what_would_fit_begins_with_what_changes_the_result_least(tmp_path):
    all_weights = config(tmp_path, trainer__batch_size=12, trainer__gradient_accumulation_steps=2)
    assert out_of_memory(all_weights, num_processes=2) == (
        "out of memory at trainer.batch_size 12; expects --set trainer.gradient_accumulation_steps=6, then "
        "--set trainer.gradient_checkpointing=true, then --set trainer.mixed_precision=bf16, then --set dtype=bfloat16, then "
        "--set lora.enabled=true, until it fits"
    )
    least = {"trainer.batch_size": 1, "trainer.gradient_checkpointing": True, "lora.enabled": True, "device": "cpu"}
    settings = {name.replace(".", "__"): value for name, value in least.items()}
    assert "takes --set lora.rank=32, until it fits" in out_of_memory(config(tmp_path, **settings))
    assert "takes a smaller teacher or data.resolution" in out_of_memory(config(tmp_path, **settings, lora__rank=4))


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
)
def test_a_disk_that_is_full_says_where_to_make_room(tmp_path, error):
    with pytest.raises(ValueError, match=r"run cannot be written: .*, [\d.,]+ MB free\. Make room there, or take another out"):
        with user_errors(config(tmp_path), 1):
            raise error


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), FileNotFoundError(2, "No such file"), KeyError("a")])
def test_other_errors_pass(tmp_path, error):
    with pytest.raises(type(error)), user_errors(config(tmp_path), 1):
        raise error
