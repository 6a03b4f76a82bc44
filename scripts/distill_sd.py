"""Distill a pipeline into a few-step student: the complete training loop in one file, to copy and change.

    python scripts/distill_sd.py                                       # the embedded teacher, minutes on a CPU
    accelerate launch scripts/distill_sd.py teacher=my-model data.path=my-images data.caption=null \\
        lora.enabled=true dtype=bfloat16 trainer.mixed_precision=bf16 trainer.gradient_checkpointing=true

NAME=VALUE changes any setting. `gendistill distill` adds validation, checkpoints and resuming.
"""

import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from rich.progress import track

from gendistill import load_config, load_teacher
from gendistill.cli.shared import parse_settings
from gendistill.data.encode import prepare_data
from gendistill.export.student_folder import export_student
from gendistill.methods import denoiser_stages
from gendistill.methods.denoiser_method import DenoiserContext
from gendistill.run.denoisers import describe_student
from gendistill.runtime.random import PerSampleRandom
from gendistill.settings.schedule import Step
from gendistill.training.mixed_precision import autocast
from gendistill.training.preparation import prepare

ROOT = Path(__file__).parents[1]
SETTINGS = {
    "teacher": str(ROOT / "assets" / "tiny-sd"),
    "data.path": str(ROOT / "assets" / "emoji" / "train-*.tar.gz"),
    "data.caption": "subcategory",
    "method": "consistency",
    "steps": [4, 2, 1],
    "trainer.max_steps": 300,
    "trainer.batch_size": 32,
    "out": "runs/distill-sd",
}


def main() -> None:
    config = load_config(None, SETTINGS | parse_settings(sys.argv[1:]))
    trainer = config.trainer
    if trainer.mixed_precision == "fp16":
        sys.exit("trainer.mixed_precision fp16: needs scaled losses, which gendistill distill has; expects no or bf16")
    accelerator = Accelerator()
    local_batch_size = trainer.batch_size // accelerator.num_processes
    first = accelerator.process_index * local_batch_size

    # the teacher, and the data, which are encoded once and cached
    dtype, size = getattr(torch, config.dtype), config.data.size
    teacher = load_teacher(config.teacher, size=size, dtype=dtype, device=accelerator.device)
    data = prepare_data(config.data, teacher, config.seed)

    # the student and its EMA: full weights, or an adapter on the frozen teacher
    torch.manual_seed(config.seed)
    context = DenoiserContext(config, teacher.family, teacher.denoiser, teacher.unconditional(), opened=teacher)
    stage = next(denoiser_stages(context))
    method = stage.method
    optimizers = prepare(method, trainer, accelerator)

    for step in track(range(trainer.max_steps), "training", disable=not accelerator.is_main_process):
        rows = data.rows_of_step(config.seed, step, trainer.batch_size)[first : first + local_batch_size]
        random = PerSampleRandom(config.seed, step, first, local_batch_size)  # the same for any number of processes
        batch, now = data.batch(rows, random, accelerator.device), Step(step, step / trainer.max_steps)
        updates = iter(method.updates(batch, now, random))
        while True:
            with autocast(trainer.mixed_precision, accelerator.device):  # of the forward pass alone
                update = next(updates, None)
            if update is None:
                break
            accelerator.backward(update.loss)
            for name in update.optimizers:
                accelerator.clip_grad_norm_(method.trained_parameters()[name].values(), trainer.max_grad_norm)
                optimizers[name].step()
                optimizers[name].zero_grad()
        method.after_step(step + 1)  # update the EMA

    if accelerator.is_main_process:
        folder = Path(config.out) / "student"
        spec, scheduler = describe_student(config, teacher, stage, "ddim")
        export_student(folder, teacher, method.networks, spec, scheduler, {"data": data.described})
        print(f"{folder}: sample with diffusers, or with gendistill sample {folder}")


if __name__ == "__main__":
    main()
