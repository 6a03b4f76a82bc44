"""Runs in half precision: a teacher in any dtype, with or without autocast, trains, validates and exports a student."""

import shlex
from functools import partial
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from fresh_process import ran
from PIL import Image
from safetensors.torch import load_file
from tiny_runs import logged, settings_of

from gendistill.run.distill import distill
from gendistill.samplers import FewStepSampler

README = Path(__file__).parents[2] / "README.md"
LORA = {"lora.enabled": True}
PROGRESSIVE = {"method": "progressive", "steps": [1], "progressive.start_steps": 2, "solvers": None}
ALIGNMENT = {"align.trajectories": 4, "align.trajectory_steps": 2}
MODES = {
    "consistency": {},
    "consistency-embedded": {"guidance.mode": "embedded"},
    "consistency-cfg": {"guidance.mode": "cfg"},
    "consistency-lora": LORA,
    "consistency-lora-cfg": LORA | {"guidance.mode": "cfg"},
    "consistency-lora-on-4-bits": LORA | {"lora.quantization": "nf4-weights"},
    "progressive": PROGRESSIVE,
    "progressive-embedded": PROGRESSIVE | {"guidance.mode": "embedded"},
    "progressive-lora": PROGRESSIVE | LORA,
    "alignment": ALIGNMENT | {"method": "latent_alignment", "align.distribution.adversarial": 0.1},
    "alignment-embedded": ALIGNMENT | {"method": "latent_alignment", "guidance.mode": "embedded"},
    "alignment-lora": ALIGNMENT | {"method": "latent_alignment"} | LORA,
}


@pytest.fixture
def settings(tiny_folder, tmp_path):
    """settings(**changes) of a run of two steps in tmp_path/run; accelerate forgets the precision of the run before."""
    AcceleratorState._reset_state(True)
    yield partial(settings_of, tmp_path, tiny_folder, "run", trainer__max_steps=2, trainer__num_validation=2)
    AcceleratorState._reset_state(True)


FEW = [  # gradients in every precision: tests/training/test_precision_matrix.py; here what comes before and after the steps
    ("bfloat16", "bf16", "consistency-embedded"),
    ("float16", "no", "consistency-lora-cfg"),
    ("float16", "bf16", "alignment"),
    ("bfloat16", "fp16", "progressive"),
    ("float32", "fp16", "consistency-lora"),
    ("bfloat16", "no", "consistency"),
]
PRODUCT = [
    (dtype, mixed, mode)
    for dtype in ("float32", "float16", "bfloat16")
    for mixed in ("no", "bf16", "fp16")
    for mode in MODES
    if (dtype, mixed) != ("float32", "no")
]
TRANSFORMERS = [("sd3", "bfloat16", "no", "consistency"), ("flux", "float16", "no", "consistency-lora-on-4-bits")]
TRANSFORMER_MODES = [mode for mode in MODES if "embedded" not in mode and not mode.endswith("cfg")]
HALF = [("sd1", *values) for values in FEW] + TRANSFORMERS
MANY = [("sd1", *values) for values in PRODUCT]
MANY += [
    (name, dtype, "no", mode) for name in ("sd3", "flux") for dtype in ("float16", "bfloat16") for mode in TRANSFORMER_MODES
]
HALF += [pytest.param(*values, marks=pytest.mark.slow) for values in MANY if values not in HALF]


@pytest.mark.parametrize(("family", "dtype", "mixed", "mode"), HALF)
def test_a_teacher_in_half_precision_is_distilled(settings, family_folder, family, dtype, mixed, mode):
    guided = {} if "guidance.mode" in MODES[mode] else {"guidance.scale": 3.0}
    sized = {"data__resolution": 32} if family == "flux" else {}
    given = {"teacher": str(family_folder(family)), "dtype": dtype, "trainer__mixed_precision": mixed, **sized}
    result = distill(settings(**given, **MODES[mode], **guided))
    assert result.training.steps == 2
    trained = result.networks.trained
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}
    images = []
    for precision in (torch.float32, getattr(torch, dtype)):
        sampler = FewStepSampler.from_pretrained(result.student_folder, dtype=precision)
        images += sampler.images(["food"], [0], num_inference_steps=1, guidance_scale=sampler.default_guidance_scale)
    assert images[1].isfinite().all()
    assert (images[1] - images[0]).abs().mean() < 0.05


def test_a_student_of_all_weights_is_exported_from_float32_not_from_the_teachers_dtype(settings):
    result = distill(settings(dtype="bfloat16"))
    saved = load_file(result.student_folder / "unet" / "diffusion_pytorch_model.safetensors")
    averaged = result.networks.averaged
    assert all(torch.equal(saved[name], parameter.half()) for name, parameter in averaged.items())
    assert any(not torch.equal(parameter.half(), parameter.bfloat16().half()) for parameter in averaged.values())


@pytest.mark.parametrize("lora", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_stages_may_differ_in_precision(settings, lora):
    stages = {"guidance_distillation": {"mixed_precision": "fp16"}, "2": {"mixed_precision": "bf16"}}
    given = {"progressive.start_steps": 4, "progressive.stages": stages, "steps": [1], "lora.enabled": lora}
    config = settings(method="progressive", solvers=None, **given)
    distill(config)
    run = Path(config.out) / "stages"
    scaled = {stage.name: bool(logged(stage, "skipped_steps")) for stage in run.iterdir()}
    assert scaled == {"guidance_distillation": True, "2": False, "1": False}
    assert all(value == value for stage in run.iterdir() for value in logged(stage, "loss"))


def test_what_a_later_stage_cannot_do_is_reported_before_the_first(settings):
    config = settings(method="progressive", solvers=None, **{"progressive.start_steps": 4, "steps": [1]})
    for changes, sentence in (
        ({"optimizer": "adamw_8bit"}, "trainer.optimizer adamw_8bit needs bitsandbytes"),
        ({"mixed_precision": "fp8"}, "progressive.stages.1: .*mixed_precision"),
    ):
        changed = config.progressive.model_copy(update={"stages": {"1": changes}})
        with pytest.raises(ValueError, match=sentence):
            distill(config.model_copy(update={"progressive": changed}))
    assert not (Path(config.out) / "config.yaml").exists()


def test_the_first_command_of_the_readme_that_distils_runs_as_it_stands(tiny_folder, tmp_path):
    """But for the teacher, the images, the place and sizes."""
    block = README.read_text().split("**Distil Stable Diffusion**")[1].split("```bash")[1].split("```")[0]
    command = block.replace("\\\n", " ").strip().splitlines()[0]
    program, verb, _, *options = shlex.split(command)
    assert (program, verb) == ("gendistill", "distill")
    options[options.index("--data") + 1] = str(tmp_path / "images")
    options[options.index("--out") + 1] = str(tmp_path / "run")
    (tmp_path / "images").mkdir()
    for number in range(4):
        Image.effect_noise((32, 32), 20 + number).convert("RGB").save(tmp_path / "images" / f"{number}.png")
        (tmp_path / "images" / f"{number}.txt").write_text("emoji of animals")
    small = ("max_steps=2", "batch_size=2", "num_validation=2", "validate_every=1", "log_every=1", "trackers=[]")
    sizes = [f"--set=trainer.{size}" for size in small] + [f"--set=data.cache={tmp_path / 'cache'}", "--device=cpu"]
    done = ran("distill", tiny_folder, *options, *sizes)
    assert done.returncode == 0, done.stderr
    assert len(logged(tmp_path / "run", "loss")) == 2
    assert (tmp_path / "run" / "student" / "pytorch_lora_weights.safetensors").exists()
