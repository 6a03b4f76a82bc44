"""What a family says of itself is true of its networks, and a family from outside the house is a family like ours."""

import inspect

import pytest
import torch
from diffusers import DDIMScheduler, DiTPipeline, DiTTransformer2DModel
from tiny_pipeline import TINY, tiny_unet, tiny_vae

from gendistill.diffusion.teacher import load_teacher
from gendistill.diffusion.trained_networks import LORA_TARGETS, full_networks
from gendistill.export.student_folder import student_pipeline
from gendistill.samplers import FewStepSampler
from gendistill.samplers.codec import LatentCodec
from gendistill.samplers.conditioning import Conditioning
from gendistill.samplers.families import FAMILIES, Family, family_called, family_of, network_of, register
from gendistill.samplers.families.stable_diffusion import StableDiffusion
from gendistill.samplers.loading import open_pipeline
from gendistill.samplers.offload.memory_model import inputs_of


@pytest.mark.parametrize("name", TINY)
def test_example_inputs_are_what_a_network_takes_and_nothing_is_computed(family_folder, name):
    pipeline = open_pipeline(family_folder(name))
    family, network = family_of(pipeline), network_of(pipeline).to("meta")
    inputs = family.example_inputs(network.config, 2, (8, 16), torch.float32)
    assert network(**inputs).sample.shape == (2, network.config.in_channels, 8, 16)
    assert inputs.keys() <= set(inspect.signature(network.forward).parameters)
    t = torch.empty(2, device="meta")
    x_t = torch.empty(2, network.config.in_channels, 8, 16, device="meta")
    conditioning = family.example_conditioning(network.config, 2, torch.float32)
    assert family.call(network, x_t, t, conditioning).is_meta


@pytest.mark.parametrize("changes", [{}, {"time_cond_proj_dim": 256}])
def test_example_inputs_are_those_that_the_memory_model_counts(changes):
    network = tiny_unet(**changes)
    ours = StableDiffusion().example_inputs(network.config, 3, (8, 8), torch.float16)
    theirs = inputs_of(network, 3, (8, 8), torch.float16)
    assert {name: (of.shape, of.dtype) for name, of in ours.items()} == {
        name: (of.shape, of.dtype) for name, of in theirs.items()
    }


@pytest.mark.parametrize("name", TINY)
def test_layers_that_a_lora_adapts_are_in_the_network_of_every_family_that_takes_one(family_folder, name):
    pipeline = open_pipeline(family_folder(name))
    family, modules = family_of(pipeline), [path for path, _ in network_of(pipeline).named_modules()]
    assert family.lora == bool(family.lora_targets) == hasattr(pipeline, "load_lora_weights")
    for target in family.lora_targets:
        assert any(f".{path}".endswith(f".{target}") for path in modules), target


def test_the_layers_that_a_lora_adapts_are_those_that_are_trained():
    assert StableDiffusion().lora_targets == LORA_TARGETS


def test_a_pipeline_of_no_family_is_refused_with_all_that_there_are():
    with pytest.raises(ValueError, match=r"family FluxPipeline is not supported; takes StableDiffusionPipeline, Stable"):
        family_called("FluxPipeline")


class DiT(Family):
    """Peebles & Xie 2023: a transformer in the latent space of a VAE, told a class; one more of them stands for none."""

    pipelines = ("DiTPipeline",)
    network_part = "transformer"
    guided = True
    task = "image-generation"
    example = "pipeline(class_labels=[0], num_inference_steps={steps}, guidance_scale={scale:g})"

    def encode(self, pipeline, prompts):
        return {"class_labels": torch.tensor([int(prompt) for prompt in prompts])}

    def unconditional(self, pipeline):
        return {"class_labels": torch.tensor([self.network(pipeline).config.num_embeds_ada_norm])}

    def own_prompts(self, pipeline):
        return [str(number) for number in range(self.network(pipeline).config.num_embeds_ada_norm)]

    def size(self, pipeline):
        edge = self.network(pipeline).config.sample_size * self.codec(pipeline).factor
        return edge, edge

    def sample(self, pipeline, conditions, unconditional, options):
        images = pipeline(
            conditions["class_labels"].tolist(),
            guidance_scale=options.guidance_scale,
            generator=options.generators,
            num_inference_steps=options.num_inference_steps,
            output_type="np",
            return_dict=False,
        )[0]
        return torch.from_numpy(images).permute(0, 3, 1, 2)

    def codec(self, pipeline):
        return LatentCodec(pipeline.vae)

    def conditioning(self, encoded, size):
        return Conditioning(**encoded)

    def network_inputs(self, config, x_t, t, conditioning, dtype):
        return {"hidden_states": x_t, "timestep": t, "class_labels": conditioning["class_labels"]}

    def example_conditioning(self, config, batch, dtype):
        return Conditioning(class_labels=torch.empty(batch, dtype=torch.int64, device="meta"))

    def student_pipeline(self, pipeline, parts):
        return DiTPipeline(**{**pipeline.components, **parts})


@pytest.fixture
def dit_folder(tmp_path):
    torch.manual_seed(0)
    network = DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        norm_num_groups=4,
        sample_size=8,
        num_embeds_ada_norm=3,
    ).eval()
    DiTPipeline(network, tiny_vae(), DDIMScheduler()).save_pretrained(tmp_path)
    family = DiT()
    register(family)
    yield tmp_path
    FAMILIES.remove(family)


@torch.no_grad()
def test_a_family_from_outside_is_opened_sampled_taught_and_made_a_student(dit_folder, generator):
    teacher = load_teacher(dit_folder)
    assert isinstance(teacher.network, DiTTransformer2DModel)
    assert (teacher.resolution, teacher.own_prompts) == (32, ["0", "1", "2"])

    x_t, t = torch.randn(2, 4, 8, 8, generator=generator), torch.tensor([10, 500])
    conditioning = teacher.encode_prompts(["0", "2"])
    eps = teacher.network(x_t, t, torch.tensor([0, 2])).sample
    torch.testing.assert_close(teacher.denoiser(x_t, t, conditioning).eps, eps)
    none = teacher.network(x_t, t, torch.tensor([3, 3])).sample
    guided = teacher.denoiser.guided(x_t, t, conditioning, teacher.unconditional(), 2.0)
    torch.testing.assert_close(guided.eps, none + 2 * (eps - none), atol=1e-5, rtol=1e-5)

    with student_pipeline(teacher, full_networks(teacher.denoiser)) as student:
        assert type(student) is DiTPipeline
        assert student.transformer is not teacher.network
        assert student.vae is teacher.pipeline.vae

    sampler = FewStepSampler.from_pretrained(dit_folder)
    assert list(sampler.components()) == ["network", "decoder"]
    images = torch.cat(list(sampler.pictures(["0", "2"], [3, 1], num_inference_steps=2, guidance_scale=1.0)))
    assert images.shape == (2, 3, 32, 32)

    inputs = teacher.family.example_inputs(teacher.network.config, 2, (8, 8), torch.float32)
    assert teacher.network.to("meta")(**inputs).sample.shape == (2, 4, 8, 8)


def test_the_family_that_was_registered_last_is_asked_first(family_folder):
    class Mine(StableDiffusion):
        pass

    mine = Mine()
    register(mine)
    try:
        assert family_called("StableDiffusionPipeline") is mine
        assert family_of(open_pipeline(family_folder("sd1"))) is mine
        assert family_of(open_pipeline(family_folder("unconditional"))) is not mine
    finally:
        FAMILIES.remove(mine)
