"""Students that learn to compute in 8 bits, by every diffusion method, as `gendistill.distill(...)` makes them."""

import pytest
import torch
from diffusers import UNet2DConditionModel
from tiny_runs import logged, settings_of

from gendistill.diffusion.int8_training import FakeInt8Conv2d, FakeInt8Linear, compute_as_int8
from gendistill.run.distill import distill
from gendistill.samplers import FewStepSampler
from gendistill.samplers.quantization.int8 import Int8Layer

METHODS = {
    "consistency": {"steps": [2, 1]},
    "progressive": {"progressive__start_steps": 4, "steps": [2], "solvers": ["ddim"]},
    "latent_alignment": {"align__trajectories": 4, "align__trajectory_steps": 4},
    "distribution_matching": {"distribution_matching__fake_score__steps": 2},
    "compression": {"compress__factor": 2, "compression__steps": 4, "steps": [4]},
}


@pytest.fixture
def settings(tiny_folder, tmp_path):
    """settings(name, **changes) of a data-free run in tmp_path/name."""
    return lambda name, **changes: settings_of(tmp_path, tiny_folder, name, **{"quantization": "int8", **changes})


def unet(folder):
    return UNet2DConditionModel.from_pretrained(folder / "unet")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_makes_a_student_that_samples_in_8_bits_as_it_learned_to(settings, tmp_path, method):
    result = distill(settings("run", method=method, **METHODS[method]))
    assert all(torch.tensor(logged(next((tmp_path / "run").rglob("log.jsonl")).parent, "loss")).isfinite())
    learned = result.networks.average.network
    assert any(isinstance(of, FakeInt8Linear) for of in learned.modules())
    assert any(isinstance(of, FakeInt8Conv2d) for of in learned.modules())
    sampler = FewStepSampler.from_pretrained(result.student_folder)
    assert sampler.spec.quantization == "int8"
    assert any(isinstance(of, Int8Layer) for of in sampler.pipeline.unet.modules())
    opened = FewStepSampler.from_pretrained(result.student_folder, quantization="none")

    def generate(of):
        return next(iter(of.images(["food"], [0])))

    in_8_bits, as_it_is = generate(sampler), generate(opened)
    compute_as_int8(opened.pipeline.unet)
    coarseness = [(of - as_it_is).abs().mean() for of in (generate(opened), in_8_bits)]
    assert 0.5 < coarseness[0] / coarseness[1] < 2  # one value rounded the other way changes all that follow
    assert max(coarseness) < 0.02


def test_a_run_begins_from_a_student_and_a_student_in_8_bits_is_opened_by_plain_diffusers(settings, tiny_folder):
    first = distill(settings("first", quantization="none", trainer__learning_rate=1e-2)).student_folder
    second = distill(settings("second", start=str(first), trainer__max_steps=1, trainer__learning_rate=1e-12)).student_folder
    begun, ended, teacher = (unet(of).state_dict() for of in (first, second, tiny_folder))
    assert all(torch.allclose(begun[name], of, atol=1e-4) for name, of in ended.items())
    assert not all(torch.allclose(teacher[name].half().float(), of, atol=1e-4) for name, of in ended.items())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"lora__enabled": True}, "quantization int8: trains all weights; expects lora.enabled=false"),
        ({"method": "decoder"}, "quantization int8: expects a method that trains a denoiser, not decoder"),
        ({"start": "a", "compress__factor": 2}, "start a: excludes compress, which starts from the teacher"),
        ({"start": "nowhere"}, "model nowhere does not exist"),
    ],
)
def test_what_does_not_go_together_is_one_sentence(settings, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        distill(settings("run", **changes))


def test_a_start_of_another_kind_than_the_teacher_is_one_sentence(settings, tiny_folder, tmp_path):
    lora = distill(settings("lora", quantization="none", lora__enabled=True, trainer__max_steps=1)).student_folder
    with pytest.raises(ValueError, match="is a LoRA; expects a student with full weights"):
        distill(settings("run", start=str(lora)))


def test_a_lora_becomes_part_of_the_network_before_that_computes_in_8_bits(settings):
    changes = {"quantization": "none", "lora__enabled": True, "trainer__learning_rate": 1e-2}
    folder = distill(settings("lora", **changes)).student_folder

    def generate(**given):
        return next(iter(FewStepSampler.from_pretrained(folder, **given).images(["food"], [0])))

    teacher = FewStepSampler.from_pretrained(settings("lora").teacher)
    undistilled = next(iter(teacher.images(["food"], [0], num_inference_steps=2, guidance_scale=1)))
    plain, coarse = generate(), generate(quantization="int8")
    assert 0 < (plain - coarse).abs().mean() < 0.02
    assert (plain - undistilled).abs().mean() > (plain - coarse).abs().mean()
