"""A LoRA that was trained for a teacher does to its student what it does to the teacher: how a 4-step student keeps its use."""

from pathlib import Path

import pytest
import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from gendistill.data.images import as_tensor
from gendistill.data.sources.source import open_source
from gendistill.evaluation.add_ons import AddOn
from gendistill.evaluation.fit import measure_fit
from gendistill.run.config import load_config
from gendistill.run.distill import distill
from gendistill.samplers import FewStepSampler

TEACHER, DATA = "assets/tiny-sd", "assets/emoji/train-*.tar.gz"
CATEGORY = "smileys and emotion"
STEPS, BATCH_SIZE = 150, 32


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    """A 4-step student of latent alignment, after a short training."""
    place = tmp_path_factory.mktemp("student")
    short = {
        "steps": [4],
        "out": str(place / "run"),
        "data.cache": str(place / "cache"),
        "align.trajectories": 512,
        "trainer.max_steps": 250,
        "trainer.batch_size": 32,
        "trainer.validate_every": 250,
        "trainer.num_validation": 64,
        "trainer.checkpoint_every": 250,
        "trainer.trackers": [],
        "device": "cpu",
    }
    return distill(load_config(Path("configs/alignment.yaml"), short)).student_folder


def restyled():
    """Twitter's images of a category, float32 (N, 3, 32, 32) in [-1, 1], and the prompts of Google's of the same kinds."""
    source = open_source(DATA, "subcategory")
    found = [source.decode(entry) for entry in source.entries() if entry.texts["category"] == f"twitter emoji of {CATEGORY}"]
    prompts = [sample.caption.replace("twitter", "google") for sample in found]
    return torch.stack([as_tensor(sample.image) for sample in found]), prompts


def train_lora(images, prompts, folder):
    """As anyone trains one for a Stable Diffusion pipeline: on its attention, by the ordinary denoising loss."""
    torch.manual_seed(0)
    pipeline = StableDiffusionPipeline.from_pretrained(TEACHER)
    network, noising = pipeline.unet, DDPMScheduler.from_config(pipeline.scheduler.config)
    with torch.no_grad():
        latents = pipeline.vae.encode(images).latent_dist.mean * pipeline.vae.config.scaling_factor
        embeddings, _ = pipeline.encode_prompt(prompts, "cpu", 1, False)
    network.requires_grad_(False)
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    network.add_adapter(LoraConfig(r=8, lora_alpha=8, target_modules=targets, init_lora_weights="gaussian"))
    optimizer = torch.optim.AdamW([weight for weight in network.parameters() if weight.requires_grad], lr=1e-3)
    for _ in range(STEPS):
        chosen, t = torch.randint(len(latents), (BATCH_SIZE,)), torch.randint(1000, (BATCH_SIZE,))
        noise = torch.randn_like(latents[chosen])
        said = network(noising.add_noise(latents[chosen], noise, t), t, embeddings[chosen]).sample
        torch.nn.functional.mse_loss(said, noise).backward()
        optimizer.step()
        optimizer.zero_grad()
    StableDiffusionPipeline.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(network))


@pytest.mark.slow
def test_a_category_moves_on_the_student_in_the_direction_that_a_lora_moves_it_on_the_teacher(student, tmp_path):
    images, prompts = restyled()
    train_lora(images, prompts, tmp_path)
    models = [FewStepSampler.from_pretrained(folder) for folder in (TEACHER, student)]
    asked = [prompts[number] for number in torch.randint(len(prompts), (128,), generator=torch.Generator().manual_seed(1))]
    fit = measure_fit(*models, asked, list(range(9000, 9128)), teacher_steps=16, add_ons=[AddOn(tmp_path)])
    print(fit)
    assert fit.trajectories == {"teacher": (16, 2.0), "student": (4, 1.0)}  # at the scale that it imitates
    effect = fit.add_ons[0].effect
    assert effect.repeated > 0.8  # 128 images tell the direction
    assert effect.cosine >= 0.7
