"""Images from images, in masks and under controls, by students and teachers of flow matching."""

import pytest
import torch
from diffusers import (
    DPMSolverMultistepScheduler,
    FluxControlNetModel,
    FluxImg2ImgPipeline,
    SD3ControlNetModel,
    SD3Transformer2DModel,
    StableDiffusion3Img2ImgPipeline,
)
from tiny_multimodal import tiny_flux, tiny_sd3
from tiny_pipeline import tiny_vae

from gendistill.samplers import FewStepSampler
from gendistill.samplers.families import family_of
from gendistill.samplers.tasks import Task
from gendistill.sampling.load_add_ons import control_network

PROMPTS, SEEDS = ["emoji of animals", "a red apple"], [3, 1]
NO_SHIFT = {"shift_factor": 0.1, "use_quant_conv": False, "use_post_quant_conv": False}


def sd3_of_16_channels(folder):
    """As released: the pipeline for inpainting supports no other number."""
    pipeline = tiny_sd3(folder)
    transformer = SD3Transformer2DModel.from_config(pipeline.transformer.config, in_channels=16, out_channels=16).eval()
    pipeline.register_modules(transformer=transformer, vae=tiny_vae(latent_channels=16, **NO_SHIFT))
    return pipeline


@pytest.fixture(scope="module")
def pipelines(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizers")
    flux = tiny_flux(folder / "flux")
    family_of(flux).set_size(flux, (32, 32))
    return {"sd3": sd3_of_16_channels(folder / "sd3"), "flux": flux}


def control_of(pipeline, folder):
    config = pipeline.transformer.config
    if type(pipeline.transformer).__name__ == "SD3Transformer2DModel":
        network = SD3ControlNetModel.from_config({**config, "num_layers": 1, "qk_norm": None}, extra_conditioning_channels=0)
    else:
        network = FluxControlNetModel.from_config(config)
    for name, parameter in network.named_parameters():
        if "controlnet_" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    network.save_pretrained(folder)
    return control_network(pipeline, folder)


def generate(pipeline, task=None, **changes):
    sampler, settings = FewStepSampler(pipeline), {"num_inference_steps": 4, "guidance_scale": 2.0, **changes}
    return torch.cat(list(sampler.images(PROMPTS, SEEDS, **({} if task is None else {"task": task}), **settings)))


@pytest.fixture
def tasks(pipelines, tmp_path):
    torch.manual_seed(0)

    def made(family):
        sampler = FewStepSampler(pipelines[family])
        images, masks = torch.rand(2, 3, *sampler.size), torch.zeros(2, 1, *sampler.size)
        masks[..., sampler.size[1] // 2 :] = 1
        control = control_of(pipelines[family], tmp_path / family)
        return {
            "image-to-image": Task(images=images, strength=0.5),
            "inpainting": Task(images=images, masks=masks, strength=1.0),
            "control": Task(controlnet=control, controls=images),
            "controlled image-to-image": Task(images=images, controlnet=control, controls=images.flip(0), strength=0.75),
            "controlled inpainting": Task(images=images, masks=masks, controlnet=control, controls=images),
        }

    return made


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_every_task_is_sampled_at_any_batch_size_or_refused_in_a_sentence(pipelines, tasks, family):
    refused = {"controlled image-to-image", "controlled inpainting"} if family == "sd3" else set()
    plain = generate(pipelines[family])
    for name, task in tasks(family).items():
        if name in refused:
            with pytest.raises(ValueError, match=r"diffusers has no pipeline for .* with a ControlNet with a"):
                generate(pipelines[family], task)
            continue
        together = generate(pipelines[family], task)
        torch.testing.assert_close(generate(pipelines[family], task, batch_size=1), together, atol=1e-5, rtol=0)
        assert (together - plain).abs().max() > 0.01, name


@pytest.mark.parametrize(("family", "stock"), [("sd3", StableDiffusion3Img2ImgPipeline), ("flux", FluxImg2ImgPipeline)])
def test_an_image_from_an_image_is_the_stock_pipelines(pipelines, tasks, family, stock):
    pipeline, task = pipelines[family], tasks(family)["image-to-image"]
    height, width = task.images.shape[2:]
    parts = {name: part for name, part in pipeline.components.items() if name not in ("image_encoder", "feature_extractor")}
    (theirs,) = stock(**parts)(
        PROMPTS[1],
        image=task.images[1:2],
        strength=task.strength,
        num_inference_steps=4,
        guidance_scale=2.0,
        generator=torch.Generator().manual_seed(SEEDS[1]),
        output_type="pt",
        height=height,
        width=width,
        **({"max_sequence_length": 256} if family == "sd3" else {}),
    ).images
    torch.testing.assert_close(generate(pipeline, task)[1], theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("algorithm", ["dpmsolver++", "sde-dpmsolver++"])
def test_a_student_of_dpm_solver_changes_images_on_the_grid_of_its_steps(pipelines, tasks, algorithm):
    """The pipeline for images expects another scheduler."""
    pipeline, task = pipelines["sd3"], tasks("sd3")["image-to-image"]
    original = pipeline.scheduler
    settings = {"use_flow_sigmas": True, "flow_shift": 3.0, "solver_order": 1, "prediction_type": "flow_prediction"}
    pipeline.scheduler = DPMSolverMultistepScheduler(**settings, timestep_spacing="trailing", algorithm_type=algorithm)
    times = []
    hook = pipeline.transformer.register_forward_pre_hook(
        lambda network, args, inputs: times.append(float(inputs["timestep"][0])), with_kwargs=True
    )
    try:
        generate(pipeline)
        from_noise = times.copy()
        times.clear()
        generate(pipeline, Task(images=task.images, strength=1.0))
        assert times == pytest.approx(from_noise, abs=1)
        times.clear()
        generate(pipeline, task)
        assert times == pytest.approx(from_noise[2:], abs=1)
    finally:
        pipeline.scheduler = original
        hook.remove()


def test_a_controlnet_of_another_network_is_refused(pipelines, tmp_path):
    control_of(pipelines["flux"], tmp_path)
    with pytest.raises(ValueError, match="is a FluxControlNetModel; a StableDiffusion3Pipeline expects a SD3ControlNetModel"):
        control_network(pipelines["sd3"], tmp_path)
