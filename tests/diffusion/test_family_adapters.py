"""Every family through the same door: what a teacher of it says and is, against diffusers' own pipelines."""

import inspect
import json
import shutil

import pytest
import torch
from diffusers import (
    DDIMPipeline,
    DDIMScheduler,
    DDPMPipeline,
    DDPMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    StableDiffusionPipeline,
)
from plain_calls import null_parts, plain_arguments
from tiny_families import TINY, TRANSFORMER_FAMILIES
from tiny_multimodal import MULTIMODAL, tiny_flux
from tiny_pipeline import tiny_pixel_unet, tiny_unet
from torch.nn.functional import pixel_shuffle

from gendistill.diffusion.guidance import Guidance, GuidanceConfig
from gendistill.diffusion.teacher import load_teacher
from gendistill.runtime.random import PerSampleRandom
from gendistill.samplers import FewStepSampler
from gendistill.samplers.families import FAMILIES
from gendistill.schedulers import flow_scheduler, student_scheduler

SEEDS = [3, 1, 4]
PROMPTS = {"unconditional": [""] * 3, "classes": ["2", "0", "2"], "dit": ["shark", "0", "shark"]}
OF_TEXT = ["emoji of animals", "a red apple", "emoji of animals"]


U_NETS = [("sd1", 1.0), ("sd2", 3.0), ("sdxl", 1.0), ("sdxl", 3.0), ("unconditional", 1.0), ("classes", 1.0)]


@pytest.mark.parametrize(
    ("name", "scale", "solver"),
    [
        *((name, scale, solver) for name, scale in U_NETS for solver in ("ddim", "lcm")),
        *((name, 3.5, "ddim") for name in TRANSFORMER_FAMILIES),
        *((name, 3.5 if name == "flux" else 1.0, "lcm") for name in TRANSFORMER_FAMILIES),
    ],
)
def test_a_image_is_the_plain_pipelines_and_does_not_depend_on_the_batch(family_folder, name, scale, solver):
    if name not in TINY:
        pytest.skip(f"diffusers has no {name}")
    teacher = load_teacher(family_folder(name), size=(32, 32) if name.startswith("flux") else None)
    prompts = PROMPTS.get(name, OF_TEXT)
    config = teacher.pipeline.scheduler.config
    bounded = teacher.family.bounded
    if teacher.denoiser.schedule.kind == "flow":
        scheduler = flow_scheduler(solver, teacher.denoiser.schedule, teacher.family.passes_sigmas)
    else:
        scheduler = student_scheduler(solver, config, teacher.denoiser.prediction_type, 40, bounded=bounded)
    sampler = FewStepSampler(teacher.pipeline)
    sampler.pipeline.scheduler = scheduler
    options = {"num_inference_steps": 2, "guidance_scale": scale}
    at_once = torch.cat(list(sampler.images(prompts, SEEDS, **options)))
    one_by_one = torch.cat(list(sampler.images(prompts, SEEDS, **options, batch_size=1)))
    rounding = 1e-4 if bounded else 1e-5  # DDPM's schedule ends at alpha = 0.006: x_0 is 160 times as far off as the output
    torch.testing.assert_close(one_by_one, at_once, atol=rounding, rtol=0)
    latents = torch.cat(list(sampler.latents(prompts, SEEDS, **options)))
    torch.testing.assert_close(teacher.codec.decode(latents) / 2 + 0.5, at_once, atol=1e-5, rtol=0)

    plain = DiffusionPipeline.from_pretrained(family_folder(name), **null_parts(family_folder(name)))
    plain.scheduler = scheduler
    plain.set_progress_bar_config(disable=True)
    for ours, prompt, seed in zip(one_by_one, prompts, SEEDS, strict=True):
        (theirs,) = plain(
            **plain_arguments(name, prompt, scale),
            num_inference_steps=2,
            generator=torch.manual_seed(seed),  # torch's own, from which schedulers sample where a pipeline passes none
            output_type="np",
        ).images
        torch.testing.assert_close(ours, torch.from_numpy(theirs).permute(2, 0, 1), atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", ["sd3", "auraflow", "lumina2"])
def test_guidance_is_that_of_a_plain_call(family_folder, name):
    teacher = load_teacher(family_folder(name))
    noise, conditioning = torch.randn(1, *teacher.codec.latent_shape(teacher.size)), teacher.encode_prompts(["food"])
    guided = teacher.denoiser.guided(noise, torch.tensor([999]), conditioning, teacher.unconditional(), 3.5)
    plain = teacher.pipeline(**plain_arguments(name, "food", 3.5), num_inference_steps=1, latents=noise, output_type="latent")
    torch.testing.assert_close(guided.x_0, plain.images, atol=1e-5, rtol=0)


def latents_of(tokens, name):
    """Latents (B, C, h, w) of 32 pixels from the tokens (B, 16, C') of families whose pipelines pack them."""
    if not name.startswith("flux"):
        return tokens
    patches = tokens.transpose(1, 2).unflatten(2, (4, 4))
    return pixel_shuffle(patches, 2) if name == "flux" else patches


@torch.no_grad()
@pytest.mark.parametrize("name", TRANSFORMER_FAMILIES)
def test_a_network_has_the_inputs_that_its_pipeline_passes(family_folder, name):
    teacher, calls = load_teacher(family_folder(name), size=(32, 32) if name.startswith("flux") else None), []
    network, schedule = teacher.network, teacher.denoiser.schedule

    def record(module, args, kwargs, output):
        calls.append((inspect.signature(module.forward).bind(*args, **kwargs).arguments, output))

    prompt = "shark" if name == "dit" else "Food, or fruit"
    hook = network.register_forward_hook(record, with_kwargs=True)
    teacher.pipeline(**plain_arguments(name, prompt, teacher.family.neutral_guidance), num_inference_steps=2)
    inputs, outputs = calls[-1]
    x_t, time = latents_of(inputs["hidden_states"], name), inputs["timestep"]
    if name in ("auraflow", "lumina2") or name.startswith("flux"):  # whose time is a fraction
        time = 1000 * (1 - time if name == "lumina2" else time)
    if name == "sana":
        time = time / network.config.timestep_scale
    output = teacher.denoiser.call(network, x_t, time, teacher.encode_prompts([prompt]))
    hook.remove()
    theirs = latents_of(outputs[0], name)[:, : x_t.shape[1]] * (-1 if name == "lumina2" else 1)
    torch.testing.assert_close(output, theirs, atol=1e-5, rtol=0)
    for key, value in calls[-1][0].items():
        if name == "sd3-without-t5" and key in ("encoder_hidden_states", "joint_attention_kwargs"):
            continue  # one token for all zeros
        expected = inputs[key]
        if isinstance(value, dict):
            assert {k: None if v is None else v.tolist() for k, v in value.items()} == {
                k: None if v is None else v.tolist() for k, v in expected.items()
            }
        else:
            expected = expected[0] if key in ("img_ids", "txt_ids") and expected.ndim == 3 else expected  # of every sample
            torch.testing.assert_close(value.float(), expected.float(), atol=1e-5, rtol=1e-5)
    assert schedule.network_time(schedule.index_of(time)).tolist() == pytest.approx(time.tolist())


@torch.no_grad()
def test_sdxl_is_conditioned_as_its_pipeline_conditions_it(family_folder):
    teacher = load_teacher(family_folder("sdxl"))
    seen = []
    hook = teacher.network.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    teacher.pipeline("food", num_inference_steps=1, guidance_scale=3.0, output_type="latent")
    hook.remove()
    conditioning, empty = teacher.encode_prompts(["food"]), teacher.unconditional()
    added = seen[0]["added_cond_kwargs"]
    assert torch.equal(seen[0]["encoder_hidden_states"], torch.cat([empty["prompt_embeds"], conditioning["prompt_embeds"]]))
    assert torch.equal(added["text_embeds"], torch.cat([empty["pooled_embeds"], conditioning["pooled_embeds"]]))
    both = torch.cat([conditioning.under(empty, 1)["time_ids"], conditioning["time_ids"]])
    assert torch.equal(added["time_ids"], both)
    assert not empty["prompt_embeds"].any()  # force_zeros_for_empty_prompt


def test_the_size_condition_of_sdxl_is_that_of_the_training_images(family_folder):
    teacher = load_teacher(family_folder("sdxl"), size=(24, 24))
    assert teacher.encode_prompts(["food", "animals"])["time_ids"].tolist() == [[24, 24, 0, 0, 24, 24]] * 2
    assert teacher.encode_prompts(["food"], (16, 32))["time_ids"].tolist() == [[16, 32, 0, 0, 16, 32]]


@torch.no_grad()
def test_both_branches_of_guidance_have_the_size_condition(family_folder):
    teacher = load_teacher(family_folder("sdxl"))
    seen = []
    hook = teacher.network.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    conditioning, x_t = teacher.encode_prompts(["food"], (16, 32)), torch.randn(1, 4, 4, 8)
    teacher.denoiser.guided(x_t, torch.tensor([500]), conditioning, teacher.unconditional(), 3.0)
    hook.remove()
    assert seen[0]["added_cond_kwargs"]["time_ids"].tolist() == [[16, 32, 0, 0, 16, 32]] * 2


@pytest.mark.parametrize("prompt", ["cat", "3", "-1", "", "1.0"])
def test_what_is_no_class_is_refused_with_the_classes_that_there_are(family_folder, prompt):
    teacher = load_teacher(family_folder("classes"))
    with pytest.raises(ValueError, match="expects the number of a class, from 0 to 2"):
        teacher.encode_prompts(["0", prompt])


def test_a_model_without_guidance_refuses_a_scale(family_folder):
    sampler = FewStepSampler(load_teacher(family_folder("unconditional")).pipeline)
    assert sampler.default_guidance_scale == 1.0
    with pytest.raises(ValueError, match="guidance_scale 2: a DDPMPipeline knows no guidance; expects 1"):
        list(sampler.images([""], [0], num_inference_steps=1, guidance_scale=2.0))


@torch.no_grad()
def test_pixels_are_clipped_as_the_teachers_own_sampler_clips_them(family_folder, generator):
    teacher = load_teacher(family_folder("unconditional"))
    scheduler = DDIMScheduler.from_config(teacher.pipeline.scheduler.config)
    x_t, t = torch.randn(2, 3, 16, 16, generator=generator), torch.tensor([999, 999])
    prediction = teacher.denoiser(x_t, t, teacher.unconditional())
    scheduler.set_timesteps(1)
    theirs = scheduler.step(teacher.network(x_t, t).sample, 999, x_t).pred_original_sample
    torch.testing.assert_close(prediction.x_0, theirs)
    assert prediction.x_0.abs().max() == 1.0


def test_the_gradient_passes_through_clipping(family_folder, generator):
    teacher = load_teacher(family_folder("unconditional"))
    teacher.network.conv_out.bias.requires_grad_(True)
    x_t = torch.randn(1, 3, 16, 16, generator=generator)
    teacher.denoiser(x_t, torch.tensor([999]), teacher.unconditional()).x_0.sum().backward()
    assert teacher.network.conv_out.bias.grad.abs().min() > 1


@torch.no_grad()
def test_v_prediction_at_zero_terminal_snr_is_exact_where_there_is_noise_alone(family_folder, generator):
    teacher = load_teacher(family_folder("sd2"))
    x_t, t = torch.randn(1, 4, 8, 8, generator=generator), torch.tensor([999])
    conditioning = teacher.encode_prompts(["food"])
    prediction = teacher.denoiser(x_t, t, conditioning)
    torch.testing.assert_close(prediction.x_0, -teacher.network(x_t, t, conditioning["prompt_embeds"]).sample)
    torch.testing.assert_close(prediction.eps, x_t)


def test_an_epsilon_teacher_at_zero_terminal_snr_is_refused(tmp_path):
    DDPMPipeline(tiny_pixel_unet(), DDPMScheduler(rescale_betas_zero_snr=True)).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"its schedule ends in pure noise .* expects a teacher that predicts v or the image"):
        load_teacher(tmp_path)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"sample_size": 27}, "data.resolution 27: expects a multiple of 2, such as 26 or 28"),
        ({"sample_size": (16, 27)}, "data.resolution 27x16: expects a multiple of 2, such as 26x16 or 28x16"),
        ({"in_channels": 2, "out_channels": 2}, r"images of 2 channels are not supported; expects 1 \(grey\), 3 \(RGB\) or"),
        ({"out_channels": 5}, "a network of 3 to 5 channels is not supported; expects 3 to 3"),
    ],
)
def test_unusual_networks_are_refused_in_one_sentence(tmp_path, changes, sentence):
    DDPMPipeline(tiny_pixel_unet(**changes), DDPMScheduler()).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=sentence):
        load_teacher(tmp_path)


def test_a_student_that_takes_its_guidance_as_an_input_is_refused_as_a_teacher(tiny_folder, tmp_path):
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder)
    pipeline.unet = tiny_unet(time_cond_proj_dim=256)
    pipeline.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="it is a student already; expects a teacher"):
        load_teacher(tmp_path)


def test_every_pipeline_belongs_to_one_family_and_a_ddim_pipeline_to_that_of_ddpm(family_folder):
    for name in TINY:
        pipeline = load_teacher(family_folder(name)).pipeline
        assert sum(family.supports(pipeline) for family in FAMILIES) == 1
    ddim = DDIMPipeline(tiny_pixel_unet(), DDIMScheduler())
    assert [type(family).__name__ for family in FAMILIES if family.supports(ddim)] == ["Unconditional"]


def test_float16_networks_keep_a_vae_that_overflows_in_float32(family_folder):
    teacher = load_teacher(family_folder("sdxl"), dtype=torch.float16)
    used = []
    teacher.pipeline.vae.decoder.register_forward_pre_hook(lambda module, args: used.append(args[0].dtype))
    teacher.codec.decode(torch.zeros(1, 4, 8, 8))
    assert used == [torch.float32]
    assert teacher.pipeline.vae.dtype == torch.float16


def changed(folder, tmp_path, **parts):
    """A copy of a pipeline's folder with other entries in its model_index.json."""
    shutil.copytree(folder, tmp_path / "changed")
    index = json.loads((folder / "model_index.json").read_text())
    (tmp_path / "changed" / "model_index.json").write_text(json.dumps(index | parts))
    return tmp_path / "changed"


@pytest.mark.parametrize(
    ("name", "part", "sentence"),
    [
        (
            "sd3",
            "text_encoder_2",
            "has no text_encoder_2; a StableDiffusion3Pipeline expects text_encoder, text_encoder_2, text",
        ),
        ("sd3", "tokenizer_3", "has no tokenizer_3; a StableDiffusion3Pipeline expects text_encoder"),
        (
            "flux",
            "text_encoder_2",
            "has no text_encoder_2; a FluxPipeline expects text_encoder, text_encoder_2, tokenizer, tok",
        ),
        ("sd1", "text_encoder", "has no text_encoder; a StableDiffusionPipeline expects text_encoder, tokenizer$"),
    ],
)
def test_a_pipeline_without_a_text_encoder_is_refused(family_folder, tmp_path, name, part, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_teacher(changed(family_folder(name), tmp_path, **{part: [None, None]}))


@pytest.mark.parametrize(
    ("name", "scheduler", "sentence"),
    [
        ("sd1", FlowMatchEulerDiscreteScheduler(), "its scheduler FlowMatchEulerDiscreteScheduler does not fit .* kind vp"),
        ("sd3", DDIMScheduler(), "its scheduler DDIMScheduler does not fit its network; expects one of the kind flow"),
        ("flux", DDIMScheduler(), "its scheduler DDIMScheduler does not fit its network; expects one of the kind flow"),
    ],
)
def test_a_scheduler_that_does_not_fit_the_network_is_refused(family_folder, tmp_path, name, scheduler, sentence):
    folder = changed(family_folder(name), tmp_path, scheduler=["diffusers", type(scheduler).__name__])
    scheduler.save_pretrained(folder / "scheduler")
    with pytest.raises(ValueError, match=sentence):
        load_teacher(folder)


def test_few_step_students_of_others_are_sampled_and_refused_as_teachers(tmp_path):
    tiny_flux(tmp_path / "tokenizer", guidance_embeds=False).save_pretrained(tmp_path / "schnell")
    images = FewStepSampler.from_pretrained(tmp_path / "schnell").images(["food"], [0], num_inference_steps=1, size=(16, 16))
    assert next(images).shape == (1, 3, 16, 16)
    with pytest.raises(ValueError, match=r"schnell is no teacher: its network has no guidance scale .*; expects Flux.1 dev$"):
        load_teacher(tmp_path / "schnell")
    if "flux2-klein" in TINY:
        TINY["flux2-klein"](tmp_path / "tokenizer-2", is_distilled=True).save_pretrained(tmp_path / "klein")
        with pytest.raises(ValueError, match=r"klein is no teacher: it is a few-step student .*; expects a Flux.2 klein base"):
            load_teacher(tmp_path / "klein")


@torch.no_grad()
def test_guidance_that_is_an_input_is_one_call_and_the_pipelines_default_where_it_is_not_given(family_folder):
    teacher, calls = load_teacher(family_folder("flux"), size=(32, 32)), []
    hook = teacher.network.register_forward_pre_hook(lambda module, args, kwargs: calls.append(kwargs), with_kwargs=True)
    conditioning, x_t, t = teacher.encode_prompts(["food", "animals"]), torch.randn(2, 16, 8, 8), torch.tensor([500, 20])
    for mode, scale, student in [("baked", 5.0, 3.5), ("baked", 1.0, 3.5), ("embedded", None, None)]:
        guidance = Guidance(teacher.unconditional(), GuidanceConfig(mode=mode, scale=scale or 3.0))
        conditions, sampled = guidance.sample(conditioning, PerSampleRandom(0, 0, 0, 2))
        calls.clear()
        guidance.predict(teacher.denoiser, x_t, t, conditions, sampled)
        teacher.denoiser(x_t, t, conditions)
        of_teacher, of_student = (call["guidance"].tolist() for call in calls)
        assert [len(call["hidden_states"]) for call in calls] == [2, 2]
        assert of_teacher == ([scale] * 2 if scale else of_student)
        assert of_student == ([student] * 2 if student else sampled.tolist())
    hook.remove()


def test_without_t5_the_conditions_have_no_zeros_and_the_network_has_them(family_folder):
    teacher = load_teacher(family_folder("sd3-without-t5"))
    conditioning = teacher.encode_prompts(["food"])
    tokens = teacher.pipeline.tokenizer_max_length
    assert conditioning["prompt_embeds"].shape == (1, tokens, 48)
    x_t, t = torch.randn(1, 16, 8, 8), torch.tensor([500.0])
    states = teacher.family.network_inputs(teacher.network.config, x_t, t, conditioning, torch.float32)["encoder_hidden_states"]
    assert states.shape == (1, tokens + 256, 48)
    assert not states[:, tokens:].any()
    assert load_teacher(family_folder("sd3")).encode_prompts(["food"])["t5_embeds"].shape == (1, 256, 48)


@torch.no_grad()
@pytest.mark.parametrize("name", MULTIMODAL)
def test_conditions_of_the_cache_enter_a_network_under_autocast_to_another_precision(family_folder, name):
    teacher = load_teacher(family_folder(name), size=(32, 32))
    conditioning = teacher.encode_prompts(["food"]).to("cpu", teacher.family.cache_dtype)
    x_t, t = torch.randn(1, *teacher.codec.latent_shape((32, 32))), torch.tensor([500])
    expected = teacher.denoiser(x_t, t, conditioning).x_0
    with torch.autocast("cpu", torch.bfloat16):
        assert (teacher.denoiser(x_t, t, conditioning).x_0 - expected).abs().mean() < 0.05
