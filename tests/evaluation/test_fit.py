"""The fit of a student to its teacher, measured on tiny random pipelines, a LoRA and a ControlNet."""

import copy
import itertools
import json
import re

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from tiny_add_ons import save_control, save_lora
from tiny_pipeline import tiny_unet

from gendistill.diffusion.blocks import paired_blocks
from gendistill.diffusion.trained_networks import copy_network
from gendistill.evaluation.add_ons import AddOn, effect_of
from gendistill.evaluation.fit import latent_drift, measure_fit
from gendistill.evaluation.fit_report import as_json, drift_plot, fit_section, layers_plot
from gendistill.evaluation.reporting.page import Page, render
from gendistill.samplers import FewStepSampler, StudentSpec

PROMPTS = [f"google emoji of {thing}" for thing in ("food", "animals", "a red apple", "people", "smileys", "fruit")]
SEEDS = list(range(6))
FEW_STEPS = {"teacher_steps": 2, "student_steps": 2, "guidance_scale": 2.0}


def fit_of(teacher, student, *, loras=(), controls=(), **settings):
    add_ons = [*map(AddOn, loras), *(AddOn(*control) for control in controls)]
    return measure_fit(teacher, student, PROMPTS, SEEDS, add_ons=add_ons, **{**FEW_STEPS, **settings})


def with_network(folder, network):
    """The pipeline of a folder with another network."""
    sampler = FewStepSampler.from_pretrained(folder)
    sampler.pipeline.unet = network.eval()
    return sampler


def noisy(folder, amount):
    """The pipeline of a folder with noise on its network's weights, relative to their standard deviation."""
    sampler, generator = FewStepSampler.from_pretrained(folder), torch.Generator().manual_seed(7)
    for parameter in sampler.pipeline.unet.parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        parameter.data += amount * noise * (parameter.data.std() if parameter.numel() > 1 else 0)
    return sampler


@pytest.fixture(scope="module")
def teacher_sampler(tiny_folder):
    return FewStepSampler.from_pretrained(tiny_folder)


@pytest.fixture(scope="module")
def lora(teacher_sampler, tmp_path_factory):
    return save_lora(teacher_sampler.pipeline.unet, tmp_path_factory.mktemp("lora"))


@pytest.fixture(scope="module")
def control(teacher_sampler, tmp_path_factory):
    image = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(8))
    return save_control(teacher_sampler.pipeline.unet, tmp_path_factory.mktemp("control") / "edges"), image


@pytest.fixture(scope="module")
def own_fit(teacher_sampler, tiny_folder, lora, control):
    """The fit of the teacher to itself, opened twice."""
    return fit_of(teacher_sampler, FewStepSampler.from_pretrained(tiny_folder), loras=[lora], controls=[control])


def test_a_student_that_is_its_teacher_fits_perfectly(own_fit):
    moments = own_fit.latents.moments
    assert (moments.mean, moments.covariance, moments.bures) == pytest.approx((0, 0, 0), abs=1e-9)
    assert (own_fit.latents.procrustes, own_fit.latents.unrotated) == pytest.approx((0, 0), abs=1e-12)
    assert (own_fit.latents.cosine, own_fit.latents.psnr) == (pytest.approx(1), float("inf"))
    blocks = ["down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"]
    assert [(layer.teacher, layer.student) for layer in own_fit.layers] == [(name, name) for name in blocks]
    assert [value for layer in own_fit.layers for value in layer.cka.values()] == pytest.approx([1.0] * 15)
    assert own_fit.unpaired == ()


def test_add_ons_have_the_same_effect_on_an_equal_student(own_fit):
    assert [one.kind for one in own_fit.add_ons] == ["LoRA", "ControlNet"]
    for one in own_fit.add_ons:
        assert (one.notes, one.unfit) == ((), ())
        assert one.effect.teacher_length > 0.01
        assert (one.effect.cosine, one.effect.ratio) == (pytest.approx(1), pytest.approx(1))


def test_noise_on_the_students_weights_worsens_every_figure(teacher_sampler, tiny_folder, lora, control):
    fits = [
        fit_of(teacher_sampler, noisy(tiny_folder, amount), loras=[lora], controls=[control]) for amount in (0.01, 0.1, 0.5)
    ]

    def rises(figures):
        return all(a < b for a, b in itertools.pairwise(figures))

    for name in ("mean", "covariance", "bures"):
        assert rises([getattr(fit.latents.moments, name) for fit in fits]), name
    assert rises([fit.latents.procrustes for fit in fits])
    assert rises([-fit.latents.cosine for fit in fits])
    assert rises([-fit.latents.psnr for fit in fits])
    assert rises([-np.mean([layer.mean for layer in fit.layers]) for fit in fits])
    assert rises([-fit.add_ons[0].effect.cosine for fit in fits])
    assert rises([-fit.add_ons[1].effect.cosine for fit in fits])


def test_a_measurement_does_not_change_the_models(tiny_folder, lora, control):
    samplers = [FewStepSampler.from_pretrained(tiny_folder), noisy(tiny_folder, 0.1)]

    def state(sampler):
        images = torch.cat(list(sampler.images(PROMPTS, SEEDS, num_inference_steps=2, guidance_scale=2)))
        hooks = sum(len(module._forward_hooks) for module in sampler.pipeline.unet.modules())
        return images, sampler.cold().weights_hash, sampler.pipeline.get_list_adapters(), hooks

    before = [state(sampler) for sampler in samplers]
    fit_of(*samplers, loras=[lora], controls=[control])
    for (images, *rest), (images_after, *rest_after) in zip(before, map(state, samplers), strict=True):
        assert torch.equal(images_after, images)
        assert rest_after == rest


def test_a_lora_for_another_width_is_reported_in_a_sentence(teacher_sampler, tiny_folder, lora):
    wide = with_network(tiny_folder, tiny_unet(block_out_channels=[24, 48]))
    (found,) = fit_of(teacher_sampler, wide, loras=[lora]).add_ons
    (note,) = found.notes
    assert note == (
        "The student: pytorch_lora_weights.safetensors does not load: 32 of 32 modules do not fit, such as "
        "down_blocks.0.resnets.0.conv1, which has 24 inputs, and 16 in the LoRA."
    )
    assert (len(found.unfit), found.effect) == (32, None)


def test_the_other_blocks_of_a_student_without_a_middle_block_are_compared(teacher_sampler, tiny_folder, lora, control):
    student = with_network(tiny_folder, tiny_unet(mid_block_type=None))
    fit = fit_of(teacher_sampler, student, loras=[lora], controls=[control])
    assert fit.unpaired == ("mid_block",)
    assert len(fit.layers) == 4
    found, controlled = fit.add_ons
    assert "8 of 32 modules of pytorch_lora_weights.safetensors were skipped" in found.notes[0]
    assert {name.split(".")[0] for name in found.unfit} == {"mid_block"}
    assert found.effect.student_length > 0
    assert controlled.effect.student_length > 0


def test_a_control_net_of_other_skip_connections_is_reported(teacher_sampler, tiny_folder, control):
    deep = with_network(tiny_folder, tiny_unet(layers_per_block=2))
    (found,) = fit_of(teacher_sampler, deep, controls=[control]).add_ons
    assert found.notes[0] == (
        "The student: edges adds to 4 skip connections and the network has 6, so that they do not correspond."
    )


def lora_student(tiny_folder, folder, strength):
    """A student that is a LoRA on its teacher."""
    scheduler = DDIMScheduler.from_pretrained(tiny_folder / "scheduler")
    save_lora(FewStepSampler.from_pretrained(tiny_folder).pipeline.unet, folder, strength)
    settings = {"solver": "ddim", "scheduler_class": "DDIMScheduler", "scheduler_config": dict(scheduler.config)}
    spec = StudentSpec("consistency", str(tiny_folder), (2,), **settings, guidance="baked", guidance_scale=2.0, lora=True)
    spec.save(folder)
    return FewStepSampler.from_pretrained(folder)


def test_a_lora_is_added_to_that_of_a_lora_student(teacher_sampler, tiny_folder, tmp_path):
    student = lora_student(tiny_folder, tmp_path, strength=0.3)
    silent = save_lora(teacher_sampler.pipeline.unet, tmp_path / "silent", strength=0.0)
    fit = measure_fit(teacher_sampler, student, PROMPTS, SEEDS, teacher_steps=2, add_ons=[AddOn(silent)])
    assert fit.sampling == {"teacher": (2, 2.0), "student": (2, 1.0)}  # the teacher at the scale that was distilled
    assert fit.latents.cosine < 0.999  # its own adapter is on
    (found,) = fit.add_ons
    assert (found.effect.student_length, found.effect.cosine) == (0, None)  # and stays on
    assert found.notes == ("It changes nothing in the teacher's images.", "It changes nothing in the student's images.")
    assert student.pipeline.get_active_adapters() == ["default_0"]


def test_a_lora_has_the_same_effect_on_an_untrained_lora_student(teacher_sampler, tiny_folder, lora, tmp_path):
    student = lora_student(tiny_folder, tmp_path, strength=0.0)
    student.pipeline.scheduler = copy.deepcopy(teacher_sampler.pipeline.scheduler)
    fit = fit_of(teacher_sampler, student, loras=[lora])
    assert fit.add_ons[0].effect.cosine == pytest.approx(1)
    assert min(layer.mean for layer in fit.layers) == pytest.approx(1)


def test_a_w_conditioned_student_is_called_with_its_guidance_scale(teacher_sampler, tiny_folder):
    student = with_network(tiny_folder, copy_network(teacher_sampler.pipeline.unet, 256))
    assert min(layer.mean for layer in fit_of(teacher_sampler, student).layers) == pytest.approx(1)
    student.pipeline.unet.time_embedding.cond_proj.weight.data.normal_(0, 1)
    assert min(layer.mean for layer in fit_of(teacher_sampler, student).layers) < 0.999


def test_stable_diffusion_xl_is_measured_too(family_folder, tmp_path):
    teacher, student = (FewStepSampler.from_pretrained(family_folder("sdxl")) for _ in range(2))
    lora = save_lora(teacher.pipeline.unet, tmp_path / "lora", save=type(teacher.pipeline).save_lora_weights)
    control = save_control(teacher.pipeline.unet, tmp_path / "control"), torch.rand(3, *teacher.size)
    fit = fit_of(teacher, student, loras=[lora], controls=[control])
    assert min(layer.mean for layer in fit.layers) == pytest.approx(1)
    assert [one.effect.cosine for one in fit.add_ons] == pytest.approx([1, 1])
    assert all(one.effect.teacher_length > 0.01 for one in fit.add_ons)


def test_pixel_models_are_compared_and_do_not_support_add_ons(family_folder, lora, control):
    sampler = FewStepSampler.from_pretrained(family_folder("classes"))
    folder, _ = control
    add_ons = [AddOn(lora), AddOn(folder, torch.rand(3, 16, 16))]
    steps = {"teacher_steps": 1, "student_steps": 1}
    fit = measure_fit(sampler, sampler, ["0", "1", "2", "0"], [1, 2, 3, 4], add_ons=add_ons, **steps)
    assert min(layer.mean for layer in fit.layers) == pytest.approx(1)
    for one, name in zip(fit.add_ons, ("LoRA", "ControlNets"), strict=True):
        sentence = f"a ConsistencyModelPipeline does not support {name}."
        assert one.notes == (f"The teacher: {sentence}", f"The student: {sentence}")


def test_a_damaged_lora_and_a_damaged_control_net_are_reported(teacher_sampler, tmp_path):
    (tmp_path / "broken.safetensors").write_bytes(b"no weights at all")
    (tmp_path / "config.json").write_text("{}")
    lora, controlled = fit_of(
        teacher_sampler,
        teacher_sampler,
        loras=[tmp_path / "broken.safetensors"],
        controls=[(tmp_path, torch.rand(3, 32, 32))],
    ).add_ons
    assert [note.split(" (")[0] for note in lora.notes] == [
        "The teacher: broken.safetensors does not load",
        "The student: broken.safetensors does not load",
    ]
    assert [note.split(" (")[0] for note in controlled.notes] == [
        f"The teacher: {tmp_path.name} does not load",
        f"The student: {tmp_path.name} does not load",
    ]
    assert all(note.count("\n") == 0 for note in (*lora.notes, *controlled.notes))


def test_layers_are_paired_by_feature_map_size_from_the_last_one():
    teacher = {"down_blocks.0": (8, 8), "down_blocks.1": (4, 4), "down_blocks.2": (4, 4), "mid_block": (4, 4)}
    teacher |= {"up_blocks.0": (8, 8), "up_blocks.1": (8, 8)}
    student = {"down_blocks.0": (8, 8), "down_blocks.1": (4, 4), "up_blocks.0": (4, 4), "up_blocks.1": (8, 8)}
    assert paired_blocks(teacher, student) == [
        ("down_blocks.0", "down_blocks.0"),
        ("down_blocks.2", "down_blocks.1"),
        ("up_blocks.1", "up_blocks.1"),
    ]
    assert paired_blocks(teacher, teacher) == [(name, name) for name in teacher]


def test_a_rotation_of_the_channels_is_distinguished_from_other_drift():
    latents = torch.randn(5, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    rotation = torch.from_numpy(np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))[0]).float()
    drift = latent_drift(latents, torch.einsum("ij,bjhw->bihw", rotation, latents))
    assert drift.unrotated > 0.1
    assert drift.procrustes == pytest.approx(0, abs=1e-9)


def test_effects_are_compared_by_their_mean_shifts():
    teacher = np.array([[2.0, 1.0], [2.0, -1.0]])
    effect = effect_of(teacher, np.array([[1.0, 0.0], [1.0, 2.0]]))
    assert (effect.teacher_length, effect.student_length) == (pytest.approx(2), pytest.approx(np.sqrt(2)))
    assert (effect.cosine, effect.ratio) == (pytest.approx(np.sqrt(0.5)), pytest.approx(np.sqrt(0.5)))
    assert effect.kept == pytest.approx(0.5)
    assert effect.repeated == pytest.approx((4 - 1) / 5)
    silent = effect_of(np.zeros((2, 2)), teacher)
    assert (silent.cosine, silent.ratio, silent.kept, silent.repeated) == (None, None, None, None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loras": ["nowhere.safetensors"]}, r"lora nowhere.safetensors: expects an existing .safetensors file"),
        ({"controls": [("nowhere", torch.rand(3, 32, 32))]}, "control nowhere: expects an existing folder of a ControlNet"),
    ],
)
def test_missing_files_are_refused(teacher_sampler, tmp_path, monkeypatch, settings, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        fit_of(teacher_sampler, teacher_sampler, **settings)


def test_a_control_image_of_another_size_is_refused(teacher_sampler, control):
    with pytest.raises(ValueError, match=r"control image: got \(3, 8, 8\), expects \(3, 32, 32\)"):
        fit_of(teacher_sampler, teacher_sampler, controls=[(control[0], torch.rand(3, 8, 8))])


def test_too_few_prompts_and_other_latent_spaces_are_refused(teacher_sampler, tiny_folder):
    with pytest.raises(ValueError, match="got 3 with 3 seeds, expects at least 4"):
        measure_fit(teacher_sampler, teacher_sampler, PROMPTS[:3], SEEDS[:3])
    small = with_network(tiny_folder, tiny_unet(sample_size=4))
    with pytest.raises(ValueError, match=r"student: has latents of shape \(4, 4, 4\) and the teacher \(4, 8, 8\)"):
        fit_of(teacher_sampler, small)


def test_progress_counts_the_images(teacher_sampler, lora, control):
    generated = []
    fit_of(teacher_sampler, teacher_sampler, loras=[lora], controls=[control], progress=generated.append)
    assert sum(generated) == len(PROMPTS) * 2 * 4  # latents, images, with a LoRA, with a ControlNet


def test_the_report_has_all_figures_and_the_json_is_standard(own_fit, teacher_sampler, tiny_folder, lora):
    wide = with_network(tiny_folder, tiny_unet(block_out_channels=[24, 48]))
    for fit in (own_fit, fit_of(teacher_sampler, wide, loras=[lora])):
        html = render(Page("Compared", [fit_section(fit, "a <student>", "its teacher", 2)]))
        assert "a &lt;student&gt;" in html
        assert html.count('<svg class="plot wide"') == 2
        assert all(layer.teacher in html for layer in fit.layers)
        assert all(note in html for one in fit.add_ons for note in one.notes)
        plain = json.loads(json.dumps(as_json(fit), allow_nan=False))
        assert [layer["mean"] for layer in plain["layers"]] == [layer.mean for layer in fit.layers]
        assert plain["latents"]["procrustes"] == fit.latents.procrustes
        assert len(plain["add_ons"]) == len(fit.add_ons)
    assert as_json(own_fit)["latents"]["psnr"] is None
    assert as_json(own_fit)["add_ons"][0]["effect"]["ratio"] == pytest.approx(1)


def test_plots_have_a_narrow_version_and_an_alternative_text(own_fit):
    for plot in (layers_plot(own_fit), drift_plot(own_fit.latents)):
        assert "narrow" in plot.svg(narrow=True)
    assert re.search(r"mid_block: t = \d+ 1, ", layers_plot(own_fit).alt)
