"""What a sampler says of students that are not sampled as they want to be; and whose they are."""

import pytest
from diffusers import DDIMScheduler, EulerAncestralDiscreteScheduler, EulerDiscreteScheduler, LCMScheduler

from gendistill.samplers import FewStepSampler
from gendistill.samplers.advice import advice
from gendistill.samplers.known_students import known_by_config, known_by_name
from gendistill.samplers.loading import open_pipeline
from gendistill.samplers.spec import StudentSpec

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def spec(**changes):
    given = {
        "method": "consistency",
        "teacher": "t",
        "num_inference_steps": (4, 2),
        "solver": "ddim",
        "scheduler_class": "DDIMScheduler",
        "scheduler_config": {**BETAS, "timestep_spacing": "trailing"},
        "guidance": "baked",
        "guidance_scale": 3.0,
    }
    return StudentSpec(**{**given, **changes})


class Pipeline:
    def __init__(self, scheduler):
        self.scheduler = scheduler


@pytest.mark.parametrize(
    ("changes", "scheduler", "steps", "scale", "sentence"),
    [
        ({}, None, 4, 1.0, None),
        ({}, None, 8, 1.0, "steps 8: the student was made for 4, 2"),
        ({}, None, 4, 7.5, "guidance_scale 7.5: guidance is baked into the student"),
        ({"guidance": "embedded", "guidance_range": (1.0, 5.0)}, None, 4, 9.0, "the student was trained for 1 to 5"),
        ({"guidance": "embedded", "guidance_range": (1.0, 5.0)}, None, 4, 4.0, None),
        ({"guidance": "cfg"}, None, 4, 7.5, None),
        ({}, LCMScheduler(), 4, 1.0, "scheduler LCMScheduler: the student is sampled by DDIMScheduler"),
        ({}, DDIMScheduler(), 4, 1.0, "timestep_spacing leading; the student is sampled at trailing"),
    ],
)
def test_advice(changes, scheduler, steps, scale, sentence):
    wants = spec(**changes)
    told = list(advice(wants, Pipeline(scheduler or wants.scheduler()), steps, scale))
    assert len(told) == (sentence is not None)
    assert sentence is None or sentence in told[0]


@pytest.mark.parametrize(
    ("name", "method", "steps", "scheduler", "guidance_scale"),
    [
        ("latent-consistency/lcm-lora-sdv1-5", "LCM-LoRA", (4, 8, 2), "LCMScheduler", 1.0),
        ("stabilityai/sdxl-turbo", "Turbo", (1, 2, 4), "EulerDiscreteScheduler", 1.0),
        ("sdxl_lightning_8step_lora.safetensors", "SDXL-Lightning", (8,), "EulerDiscreteScheduler", 1.0),
        ("sdxl_lightning_1step_x0.safetensors", "SDXL-Lightning, 1 step", (1,), "EulerDiscreteScheduler", 1.0),
        ("Hyper-SD15-4steps-lora.safetensors", "Hyper-SD", (4,), "DDIMScheduler", 1.0),
        ("Hyper-SDXL-8steps-CFG-lora.safetensors", "Hyper-SD, CFG kept", (8,), "DDIMScheduler", 5.0),
        ("Hyper-SDXL-1step-lora.safetensors", "Hyper-SD, unified", (1, 2, 4, 8), "TCDScheduler", 1.0),
        ("dmd2_sdxl_4step_lora_fp16.safetensors", "DMD2", (4,), "LCMScheduler", 1.0),
        ("dmd2_sdxl_1step_unet_fp16.safetensors", "DMD2", (1,), "LCMScheduler", 1.0),
        ("tcd-sdxl-lora", "TCD", (4, 8), "TCDScheduler", 1.0),
    ],
)
def test_models_of_others_are_known_by_their_names(name, method, steps, scheduler, guidance_scale):
    kind = known_by_name(name)
    assert kind is not None
    made = kind.spec(name, {**BETAS, "_class_name": "x"})
    assert (made.method, made.num_inference_steps, made.scheduler_class) == (method, steps, scheduler)
    assert made.pipeline_guidance_scale == guidance_scale
    assert type(made.scheduler()).__name__ == scheduler


def test_a_model_whose_name_says_nothing_is_not_guessed():
    assert known_by_name("runwayml/stable-diffusion-v1-5") is None
    assert known_by_name("my-fast-model.safetensors") is None


def test_dmd2_is_sampled_at_timesteps_of_its_own(tmp_path):
    made = known_by_name("dmd2_sdxl_4step_unet.safetensors").spec("dmd2", BETAS)
    assert made.timesteps is None or made.timesteps[4] == [999, 749, 499, 249]
    made = known_by_name("dmd2_sdxl_4step_unet.safetensors").spec("dmd2_sdxl_4step_unet.safetensors", BETAS)
    assert made.timesteps == {4: [999, 749, 499, 249]}
    made.save(tmp_path)
    assert StudentSpec.load(tmp_path) == made


def test_lcm_is_known_by_its_config(family_folder):
    pipeline = open_pipeline(family_folder("sd1"))
    assert known_by_config(pipeline) is None
    pipeline.scheduler = LCMScheduler.from_config(pipeline.scheduler.config)
    pipeline.unet.register_to_config(time_cond_proj_dim=256)
    assert known_by_config(pipeline).method == "LCM"


@pytest.mark.parametrize(
    ("name", "own", "changes", "sampled_by"),
    [
        ("stabilityai/sdxl-turbo", EulerAncestralDiscreteScheduler, {"timestep_spacing": "trailing"}, "EulerAncestralDiscrete"),
        ("stabilityai/sdxl-turbo", EulerDiscreteScheduler, {"timestep_spacing": "leading"}, "EulerDiscrete"),
        ("someone/lcm-lora-merged", LCMScheduler, {"original_inference_steps": 40}, "LCM"),
        ("someone/tcd-xl", DDIMScheduler, {}, "TCD"),
        ("sdxl_lightning_1step_x0", EulerDiscreteScheduler, {"timestep_spacing": "trailing"}, "EulerDiscrete"),
    ],
)
def test_a_few_step_models_own_scheduler_is_used_if_it_suits(family_folder, name, own, changes, sampled_by):
    pipeline = open_pipeline(family_folder("sdxl"))
    scheduler = own.from_config(pipeline.scheduler.config, **changes)
    pipeline.scheduler = scheduler
    known = FewStepSampler(pipeline).recognised(name)
    assert type(known.pipeline.scheduler).__name__ == f"{sampled_by}Scheduler" == known.spec.scheduler_class
    used = known.pipeline.scheduler.config
    if changes.get("timestep_spacing") != "leading" and "1step" not in name:
        assert all(used[setting] == value for setting, value in changes.items())
    assert "1step" not in name or used.prediction_type == "sample"
