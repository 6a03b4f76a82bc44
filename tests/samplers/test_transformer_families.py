"""What is special in pipelines of transformers: sizes, schedulers, labels, and parts that only U-Nets have."""

import json
import shutil

import pytest
import torch
from diffusers import DDIMScheduler, DiffusionPipeline, FlowMatchEulerDiscreteScheduler
from tiny_transformers import tiny_sana

from gendistill.diffusion.rollout import few_step_rollout
from gendistill.diffusion.teacher import load_teacher
from gendistill.export.formats import export
from gendistill.samplers import FewStepSampler
from gendistill.samplers.families import family_of, network_of
from gendistill.samplers.loading import open_pipeline
from gendistill.samplers.tasks import Task
from gendistill.schedulers import student_scheduler


def changed(folder, place, **parts):
    """A copy of a pipeline folder with other entries in its model_index.json."""
    shutil.copytree(folder, place)
    index = json.loads((place / "model_index.json").read_text())
    (place / "model_index.json").write_text(json.dumps({**index, **parts}))
    return place


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "edge"), [("pixart-sigma", 16), ("pixart-sigma", 64), ("sana", 64), ("auraflow", 24), ("lumina2", 48), ("sd3", 64)]
)
def test_a_network_that_was_trained_at_another_size_opens_as_the_same_network(family_folder, tmp_path, name, edge):
    teacher = load_teacher(family_folder(name), size=(edge, edge))
    teacher.pipeline.save_pretrained(tmp_path)
    opened = open_pipeline(tmp_path)
    assert family_of(opened).size(opened) == (edge, edge)
    latents = torch.randn(1, *teacher.codec.latent_shape((edge, edge)))
    conditioning, t = teacher.encode_prompts(["food"]), torch.tensor([500.0])
    outputs = [teacher.family.call(network, latents, t, conditioning) for network in (teacher.network, network_of(opened))]
    torch.testing.assert_close(outputs[1], outputs[0], atol=1e-6, rtol=0)


@torch.no_grad()
def test_positions_of_sana_keep_their_scale_at_another_size(tmp_path):
    tiny_sana(interpolation_scale=2.0).save_pretrained(tmp_path / "teacher")
    teacher = load_teacher(tmp_path / "teacher", size=(64, 64))
    teacher.pipeline.save_pretrained(tmp_path / "student")
    latents = torch.randn(1, 4, 16, 16)
    before, after = (part.patch_embed(latents) for part in (teacher.network, open_pipeline(tmp_path / "student").transformer))
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize(
    ("name", "size", "sentence"),
    [
        ("pixart-alpha", 64, "passes the image size to networks for 128 pixels only; expects 128"),
        ("pixart-sigma", 20, "data.resolution 20: expects a multiple of 8, such as 16 or 24"),
        ("dit", (32, 64), "^data.resolution 64x32: a DiTPipeline samples images of one size only; expects 32$"),
        ("sana", 48, "data.resolution 48: expects a multiple of 32, such as 32 or 64"),
        ("auraflow", 64, "data.resolution 64: the network has positions for 48 pixels; expects at most these"),
        ("lumina2", 40, "data.resolution 40: expects a multiple of 16"),
    ],
)
def test_sizes_that_a_network_cannot_have_are_one_sentence(family_folder, name, size, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_teacher(family_folder(name), size=(size, size) if isinstance(size, int) else size)


@pytest.mark.parametrize(
    ("name", "scheduler"),
    [
        ("pixart-sigma", FlowMatchEulerDiscreteScheduler(shift=3.0)),
        ("dit", FlowMatchEulerDiscreteScheduler(shift=3.0)),
        ("sana", DDIMScheduler()),
        ("lumina2", DDIMScheduler()),
    ],
)
def test_a_scheduler_that_does_not_fit_the_network_is_one_sentence(family_folder, tmp_path, name, scheduler):
    folder = changed(family_folder(name), tmp_path / name, scheduler=["diffusers", type(scheduler).__name__])
    scheduler.save_pretrained(folder / "scheduler")
    with pytest.raises(ValueError, match=f"its scheduler {type(scheduler).__name__} does not fit its network"):
        load_teacher(folder)


@pytest.mark.parametrize("name", ["pixart-sigma", "sana", "auraflow", "lumina2"])
def test_a_pipeline_without_its_text_encoder_is_one_sentence(family_folder, tmp_path, name):
    folder = changed(family_folder(name), tmp_path / name, text_encoder=[None, None])
    with pytest.raises(ValueError, match="text_encoder") as error:
        load_teacher(folder)
    assert "\n" not in str(error.value)


def test_one_step_of_pixart_alpha_expects_a_scheduler_that_predicts_the_image(family_folder):
    teacher = load_teacher(family_folder("pixart-alpha"))
    sampler = FewStepSampler(teacher.pipeline)
    with pytest.raises(ValueError, match="steps 1: a PixArtAlphaPipeline with DPMSolverMultistepScheduler expects at least 2"):
        next(sampler.images(["food"], [0], num_inference_steps=1, guidance_scale=1.0))
    teacher.pipeline.scheduler = student_scheduler("ddim", teacher.pipeline.scheduler.config, "epsilon", steps=[1])
    assert next(sampler.images(["food"], [0], num_inference_steps=1, guidance_scale=1.0)).isfinite().all()


@torch.no_grad()
def test_a_mix_of_predictions_with_a_learned_variance_is_validated_by_plain_pipelines(family_folder, generator):
    teacher = load_teacher(family_folder("pixart-sigma"))
    pipeline, mixed = teacher.pipeline, teacher.denoiser.with_prediction_type("v_prediction", 0.4)
    noise = torch.randn(1, 4, 8, 8, generator=generator)
    pipeline.scheduler = student_scheduler("ddim", pipeline.scheduler.config, "v_prediction", steps=[4])
    options = {"num_inference_steps": 4, "guidance_scale": 1.0, "output_type": "latent", "use_resolution_binning": False}
    with mixed.converting(teacher.network):
        sampled = pipeline("food", latents=noise, **options).images
    expected = few_step_rollout(mixed, noise, teacher.encode_prompts(["food"]), 4)[0]
    torch.testing.assert_close(sampled, expected, atol=1e-3, rtol=1e-4)


def test_a_prompt_of_dit_is_a_label_or_a_number_and_exports_keep_the_labels(family_folder, tmp_path):
    folder = family_folder("dit")
    sampler = FewStepSampler(open_pipeline(folder))
    assert sampler.own_prompts[:4] == ["Tinca tinca", "1", "shark", "3"]
    assert len(sampler.own_prompts) == 1000
    labels = sampler.family.encode(sampler.pipeline, ["shark", "2", "tench", "0"])["class_labels"]
    assert labels.tolist() == [2, 2, 0, 0]
    for prompt in ("whale", "1000", "-1"):
        with pytest.raises(ValueError, match="expects a label, such as 'Tinca tinca', or the number of a class, from 0 to 999"):
            sampler.family.encode(sampler.pipeline, [prompt])
    export(folder, "diffusers", tmp_path / "export")
    assert DiffusionPipeline.from_pretrained(tmp_path / "export").labels == sampler.pipeline.labels


@pytest.mark.parametrize("name", ["pixart-sigma", "sana"])
def test_what_only_u_nets_have_is_one_sentence(family_folder, tmp_path, name):
    pipeline = open_pipeline(family_folder(name))
    sampler, kind = FewStepSampler(pipeline), type(pipeline).__name__
    assert sampler.size_multiple == {"pixart-sigma": 8, "sana": 32}[name]
    with pytest.raises(ValueError, match=f"diffusers has no pipeline for .* with a {kind}; expects another task"):
        next(sampler.images(["food"], [0], task=Task(torch.rand(1, 3, 32, 32))))
    with pytest.raises(ValueError, match=f"expects a text-to-image model with a U-Net; this is a {kind}"):
        export(family_folder(name), "onnx", tmp_path / "onnx")
