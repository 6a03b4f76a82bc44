"""Distill LoRAs of models of real size on this machine's CPU, and tell the memory that it takes. No download.

    python benchmarks/real_size.py sd1 sd2-v sdxl

The teachers have the architecture of the published models and random weights: what is measured is that it runs, in how much
memory, and that diffusers opens what comes out. `sd1` and `sd2-v` are whole: UNet, VAE, text encoder and CLIP's vocabulary,
at 64x64 latents. `sdxl` keeps every block and layer and is narrower (a fifth of the channels, text encoders of 2 layers).
Each takes minutes; a teacher takes up to 3 GB of disk while it is distilled.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from PIL import Image
from random_models import random_pipeline

from gendistill.samplers import StudentSpec

LATENTS = 64
NARROWER = {
    "unet": {
        "block_out_channels": [64, 128, 256],
        "attention_head_dim": [1, 2, 4],
        "cross_attention_dim": 192,
        "projection_class_embeddings_input_dim": 128 + 6 * 256,
    },
    "text_encoder": {"hidden_size": 64, "intermediate_size": 256, "num_attention_heads": 2, "num_hidden_layers": 2},
    "text_encoder_2": {
        **{"hidden_size": 128, "intermediate_size": 512, "num_attention_heads": 2, "num_hidden_layers": 2},
        "projection_dim": 128,
    },
}
OPEN_IN_DIFFUSERS = """
import sys, torch, diffusers
teacher, student, scheduler = sys.argv[1:]
pipeline = diffusers.DiffusionPipeline.from_pretrained(teacher, torch_dtype=torch.float32)
pipeline.load_lora_weights(student)
pipeline.scheduler = getattr(diffusers, scheduler).from_pretrained(student, subfolder="scheduler")
latents = pipeline("a cat", num_inference_steps=1, guidance_scale=1, output_type="latent").images
assert "gendistill" not in sys.modules and torch.isfinite(latents).all(), latents
print(f"diffusers opened the LoRA and sampled latents {tuple(latents.shape)}")
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("architectures", nargs="+", choices=["sd1", "sd2-v", "sdxl"])
    parser.add_argument("--steps", type=int, default=2, help="optimizer steps")
    parser.add_argument("--gibibytes", type=float, default=14, help="the most memory that a run may take")
    args = parser.parse_args()
    for architecture in args.architectures:
        with tempfile.TemporaryDirectory() as folder:
            gibibytes = measure(architecture, Path(folder), args.steps)
        assert gibibytes < args.gibibytes, f"{architecture} took {gibibytes:.1f} GiB"


def measure(architecture: str, folder: Path, steps: int) -> float:
    """Build, distill, open; the peak memory of the distillation in GiB."""
    narrower = NARROWER if architecture == "sdxl" else None
    teacher = random_pipeline(architecture, latents=LATENTS, dtype=torch.float16, narrower=narrower)
    teacher.save_pretrained(folder / "teacher")
    print(f"{architecture}: a UNet of {teacher.unet.num_parameters() / 1e6:.0f} M parameters", flush=True)
    del teacher
    write_images(folder / "images")
    settings = {
        "data.cache": folder / "cache",
        "data.resolution": LATENTS * 8,
        "solvers": '["ddim"]',
        "trainer.max_steps": steps,
        "trainer.batch_size": 1,
        "trainer.gradient_checkpointing": True,
        "trainer.num_validation": 2,
        "trainer.trackers": "[]",
    }
    command = [sys.executable, "-m", "gendistill.cli", "distill", str(folder / "teacher"), "--lora", "--device", "cpu"]
    command += ["--steps", "1", "--data", str(folder / "images"), "--out", str(folder / "run")]
    command += [f"--set={name}={value}" for name, value in settings.items()]
    started = time.monotonic()
    _, status, usage = os.wait4(subprocess.Popen(command).pid, 0)
    assert status == 0, f"exit status {status}"
    minutes, peak = (time.monotonic() - started) / 60, usage.ru_maxrss / 2**20
    print(f"{architecture}: {steps} steps in {minutes:.1f} min, peak RSS {peak:.1f} GiB", flush=True)
    student = folder / "run" / "student"
    scheduler = StudentSpec.load(student).scheduler_class
    subprocess.run([sys.executable, "-c", OPEN_IN_DIFFUSERS, folder / "teacher", student, scheduler], check=True)
    return peak


def write_images(folder: Path) -> None:
    folder.mkdir()
    for number in range(2):
        Image.effect_noise((512, 512), 30 + number).convert("RGB").save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("a cat on a mat")


if __name__ == "__main__":
    main()
