"""The family of docs/extending.md, by one file and one registration, from outside of the package."""

import importlib
import json
import sys

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from plugin import install_template
from tiny_pipeline import tiny_vae
from warm_process import ran_warm

from gendistill.diffusion.teacher import load_teacher
from gendistill.run.config import load_config
from gendistill.run.denoisers import fitting
from gendistill.run.training_plan import plan_training
from gendistill.samplers import FewStepSampler
from gendistill.samplers.families import FAMILIES
from gendistill.sampling.placement_plan import plan_sampling

TEMPLATE = "my_family"
PLAIN = """
import sys, numpy, torch
from diffusers import DiTPipeline
pipeline = DiTPipeline.from_pretrained("run/student")
noise = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
images = pipeline([7, 7], num_inference_steps=2, guidance_scale=1.0, generator=noise, output_type="np").images
assert not any(name.startswith("gendistill") for name in sys.modules)
numpy.save("plain.npy", images)
"""


@pytest.fixture(scope="module")
def dit_folder(tmp_path_factory):
    """A random DiT that has learned a variance, of the published models' 1,000 classes."""
    torch.manual_seed(0)
    network = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        norm_num_groups=4,
        sample_size=8,
        num_embeds_ada_norm=1000,
    )
    for parameter in network.parameters():
        parameter.data.add_(torch.randn_like(parameter), alpha=0.1)
    folder = tmp_path_factory.mktemp("dit")
    DiTPipeline(network.eval(), tiny_vae(), DDIMScheduler(clip_sample=False)).save_pretrained(folder)
    return folder


@pytest.fixture
def registered(tmp_path, monkeypatch):
    """The template's module, its family registered in this process."""
    monkeypatch.syspath_prepend(install_template(tmp_path / "imported", TEMPLATE))
    known = list(FAMILIES)
    yield importlib.import_module(TEMPLATE)
    FAMILIES[:] = known
    del sys.modules[TEMPLATE]


def test_its_model_is_distilled_and_the_student_opens_in_plain_diffusers(gendistill, dit_folder, tmp_path):
    settings = {
        "data.num_synthetic": 4,
        "data.synthetic_steps": 2,
        "solvers": "[ddim]",
        "trainer.max_steps": 2,
        "trainer.batch_size": 2,
        "trainer.gradient_checkpointing": True,
        "trainer.log_every": 1,
        "trainer.num_validation": 2,
        "trainer.trackers": "[]",
    }
    given = ["distill", dit_folder, "--method", "consistency", "--steps", "2,1", "--device", "cpu", "--out", tmp_path / "run"]
    ran = gendistill(*given, *(part for name, value in settings.items() for part in ("--set", f"{name}={value}")))
    assert ran.returncode == 0, ran.stderr
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert sum("loss" in line for line in lines) == 2
    card = (tmp_path / "run" / "student" / "README.md").read_text()
    assert "pipeline(class_labels=[0], num_inference_steps=2, guidance_scale=1).images" in card

    plain = ran_warm(PLAIN, folder=tmp_path)
    assert plain.returncode == 0, plain.stderr
    asked = ["--prompt", "7", "--num", "2", "--seed", "3", "--steps", "2", "--device", "cpu", "--out", "ours.npy"]
    sampled = gendistill("sample", "run/student", *asked)
    assert sampled.returncode == 0, sampled.stderr
    ours, theirs = np.load(tmp_path / "ours.npy"), np.load(tmp_path / "plain.npy")
    assert np.abs(ours - theirs.reshape(ours.shape)).max() < 1e-5


def test_plans_know_its_networks(registered, dit_folder):
    sampling = plan_sampling(str(dit_folder))
    assert (sampling.size, sampling.needs.text) == ((32, 32), 0)
    training = plan_training(load_config(None, {"teacher": str(dit_folder), "device": "cpu"}), probe=True)
    assert training.needs["as it is"].rows.learning > 0
    assert training.seconds > 0
    assert "lora.enabled=true" not in training.needs, "diffusers loads no LoRA into a DiTPipeline"


@torch.no_grad()
def test_its_networks_and_its_images_are_those_of_diffusers(registered, dit_folder, generator):
    teacher = load_teacher(dit_folder)
    assert (type(teacher.family), teacher.size, len(teacher.own_prompts)) == (registered.DiT, (32, 32), 1000)
    x_t, t = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([10, 500])
    conditioning = teacher.encode_prompts(["0", "2"])
    eps = teacher.network(x_t, t, torch.tensor([0, 2])).sample[:, :4]
    torch.testing.assert_close(teacher.denoiser(x_t, t, conditioning).eps, eps)
    none = teacher.network(x_t, t, torch.tensor([1000, 1000])).sample[:, :4]
    guided = teacher.denoiser.guided(x_t, t, conditioning, teacher.unconditional(), 2.0)
    torch.testing.assert_close(guided.eps, none + 2 * (eps - none), atol=1e-5, rtol=1e-5)

    noise = [torch.Generator().manual_seed(seed) for seed in (3, 1)]
    expected = teacher.pipeline([0, 2], guidance_scale=2.0, generator=noise, num_inference_steps=3, output_type="np").images
    images = FewStepSampler(teacher.pipeline).images(["0", "2"], [3, 1], num_inference_steps=3, guidance_scale=2.0)
    torch.testing.assert_close(torch.cat(list(images)), torch.from_numpy(expected).permute(0, 3, 1, 2), atol=1e-5, rtol=0)

    with pytest.raises(ValueError, match=r"prompt 'cat': expects the number of a class, from 0 to 999"):
        teacher.encode_prompts(["cat"])


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"lora.enabled": True}, "diffusers loads no LoRA"),
        ({"guidance.mode": "embedded"}, "has no guidance scale input; expects baked"),
    ],
)
def test_what_it_lacks_is_refused_in_a_sentence(registered, settings, reason):
    with pytest.raises(ValueError, match=reason):
        fitting(load_config(None, {"teacher": "my-dit"} | settings), registered.DiT(), "DiTPipeline")
