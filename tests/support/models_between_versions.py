"""Tiny models that one environment writes and another one samples: `python models_between_versions.py write|sample FOLDER`."""

import sys
from pathlib import Path

import torch
from diffusers import DiffusionPipeline
from peft import LoraConfig
from tiny_pipeline import CAPTIONS, TINY

from gendistill.assets import ASSETS
from gendistill.export.formats import export
from gendistill.export.student_folder import save_lora
from gendistill.samplers import FewStepSampler
from gendistill.samplers.loading import open_pipeline

FAMILIES = ("sd1", "sdxl")


def write(folder):
    """A student folder of each family, and a LoRA whose alpha is not its rank."""
    for family in FAMILIES:
        TINY[family](folder / f"tokenizer-{family}").save_pretrained(folder / f"teacher-{family}")
        export(str(folder / f"teacher-{family}"), "diffusers", folder / family, dtype="float32")
    pipeline = open_pipeline(folder / "sd1")
    torch.manual_seed(0)
    pipeline.unet.add_adapter(LoraConfig(r=2, lora_alpha=8, target_modules=["to_q", "to_v"], init_lora_weights=False))
    save_lora(pipeline, "default", folder / "lora", torch.float32)


def sample(folder):
    """An image by gendistill and one by plain diffusers of each, and of the embedded teacher: a tensor by name."""
    images = {}
    for name in (*FAMILIES, "tiny-sd"):
        place = str(folder / name if name in FAMILIES else ASSETS / name)
        sampler = FewStepSampler.from_pretrained(place)
        [images[name]] = sampler.images(CAPTIONS[:1], [0], num_inference_steps=2)
        images[f"{name} in diffusers"] = _plain(DiffusionPipeline.from_pretrained(place))
    pipeline = DiffusionPipeline.from_pretrained(str(folder / "sd1"))
    pipeline.load_lora_weights(str(folder / "lora"))
    images["lora"] = _plain(pipeline)
    return images


def _plain(pipeline):
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(0)
    return pipeline(CAPTIONS[0], num_inference_steps=2, generator=noise, output_type="pt").images


if __name__ == "__main__":
    task, place = sys.argv[1:]
    torch.set_num_threads(1)
    if task == "write":
        write(Path(place))
    else:
        torch.save(sample(Path(place)), Path(place) / f"images-{torch.__version__}.pt")
