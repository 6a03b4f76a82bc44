"""No training step waits for a GPU: no value that is on the device is read on the host between the batch and its losses.

Shapes, dtypes and devices alone are computed (PyTorch's fake tensors), so that this needs no GPU.
"""

import traceback
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from gendistill.data.batches import Batch, Trajectories
from gendistill.diffusion.teacher import load_teacher
from gendistill.methods.denoiser_method import DenoiserContext
from gendistill.methods.method_registry import RECIPES
from gendistill.run.config import load_config
from gendistill.runtime.random import PerSampleRandom
from gendistill.settings.schedule import Step

READS = (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.item.default)
METHODS = [
    {"method": "consistency", "guidance.mode": "embedded", "lora.enabled": False},
    {"method": "consistency", "guidance.mode": "cfg", "consistency.num_phases": 4},
    {"method": "progressive", "progressive.start_steps": 8, "progressive.sampler": "stochastic"},
    {
        "method": "latent_alignment",
        "align.on_policy_fraction": 1.0,
        "align.match.perceptual": 1.0,
        "align.distribution": dict.fromkeys(("adversarial", "mmd", "sliced_wasserstein", "patches", "real_patches"), 1.0),
        "align.semantic.distance": 1.0,
        "align.semantic.contrastive": 1.0,
    },
    {
        "method": "distribution_matching",
        "distribution_matching.segments": True,
        "distribution_matching.fake_score.steps": 2,
        "solvers": ["tcd"],
    },
    {"method": "compression", "compress.factor": 2, "lora.enabled": False},
]


class HostReads(TorchDispatchMode):
    """Records each operation that needs values of a GPU tensor on the host, with its place in the code."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        on_gpu = any(isinstance(value, torch.Tensor) and value.is_cuda for value in args)
        result = 0 if operation in READS else operation(*args, **(kwargs or {}))
        tensor = isinstance(result, torch.Tensor)
        blocking = operation == torch.ops.aten._to_copy.default and not (kwargs or {}).get("non_blocking")
        if (on_gpu and (operation in READS or (tensor and not result.is_cuda))) or (blocking and result.is_cuda and not on_gpu):
            places = [f"{line.filename}:{line.lineno}" for line in traceback.extract_stack() if ".venv" not in line.filename]
            self.found.append((str(operation), places[-2]))
        return result


def on_gpu(tensor):
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")


def move(module):
    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(on_gpu(parameter), requires_grad=parameter.requires_grad)
        part._buffers.update({name: on_gpu(buffer) for name, buffer in part._buffers.items() if buffer is not None})


@pytest.mark.skipif(
    torch.__version__ < (2, 7) and not torch.cuda.is_available(), reason="fake tensors of a GPU need its driver with torch 2.6"
)
@pytest.mark.parametrize("settings", METHODS, ids=lambda settings: "-".join(str(value) for value in settings.values())[:40])
def test_no_method_reads_a_tensor_of_the_gpu_on_the_host(settings, tiny_folder):
    config = load_config(None, {"teacher": str(tiny_folder), "steps": [2], "lora.enabled": True, **settings})
    teacher = load_teacher(config.teacher)
    context = DenoiserContext(config, teacher.family, teacher.denoiser, teacher.unconditional(), None, teacher)
    method, conditioning = next(iter(RECIPES[config.method].stages(context))).method, teacher.encode_prompts(["food", "cats"])
    with FakeTensorMode(allow_non_fake_inputs=True):
        if hasattr(method, "guidance"):
            method.guidance = replace(method.guidance, unconditional=method.guidance.unconditional.map(on_gpu))
        for module in (*method.held_networks(), *method.trained_modules().values()):
            move(module)
        points, times = torch.empty(2, 3, 4, 8, 8, device="cuda"), torch.empty(3, device="cuda", dtype=torch.int64)
        conditioning = conditioning.map(on_gpu)
        batch = Batch(torch.empty(2, 4, 8, 8, device="cuda"), conditioning, Trajectories(points, times, conditioning))
        with HostReads() as reads:
            losses = [update.loss for update in method.updates(batch, Step(1, 0.1), PerSampleRandom(0, 0, 0, 2))]
    assert {loss.device.type for loss in losses} == {"cuda"}
    assert reads.found == []
