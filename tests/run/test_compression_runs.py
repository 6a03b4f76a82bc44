"""Smaller denoisers as `gendistill.distill(...)` makes them: alone, and before their steps are distilled."""

import pytest
import torch
from diffusers import DiffusionPipeline, SD3Transformer2DModel, UNet2DConditionModel
from fresh_process import ran
from plain_calls import plain_images, plain_pipeline
from tiny_multimodal import tiny_sd3
from tiny_runs import logged, settings_of

from gendistill.evaluation.fit import measure_fit
from gendistill.methods.compression import compressed_config, macs_fraction, matched_blocks, pruning_for
from gendistill.run.distill import distill
from gendistill.samplers import FewStepSampler
from gendistill.samplers.families import family_called
from gendistill.samplers.quantization.int8 import Int8Layer


@pytest.fixture
def settings(tiny_folder, tmp_path):
    """settings(name, **changes) of a data-free run of half the network in tmp_path/name."""
    half = {"method": "compression", "compress__factor": 2, "compression__steps": 4, "steps": [4]}
    few = {"align__trajectories": 4, "align__trajectory_steps": 4, "data__num_synthetic": 8, "trainer__batch_size": 4}

    def make(name, **changes):
        return settings_of(tmp_path, tiny_folder, name, **{**half, **few, **changes})

    return make


def unets(folder, other):
    return [UNet2DConditionModel.from_pretrained(of, subfolder="unet") for of in (folder, other)]


EVERY_LOSS = {
    "compression__task": 0.5,
    "compression__features__attention": 1.0,
    "compression__relations__distance": 1.0,
    "compression__relations__angle": 1.0,
    "compression__relations__contrastive": 1.0,
    "compression__relations__similarity": 1.0,
}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        EVERY_LOSS,
        {"guidance__mode": "embedded", "guidance__range": [1, 4]},
        {"guidance__mode": "cfg"},
        {"compress__factor": None, "compress__blocks": True},
        {"compression__features__hints": 0},
    ],
    ids=["half", "every loss", "slider", "guided when sampled", "without the block in the middle", "output alone"],
)
def test_a_smaller_student_is_trained_and_plain_diffusers_opens_it(settings, tiny_folder, tmp_path, changes):
    result = distill(settings("run", **changes))
    assert all(torch.tensor(logged(tmp_path / "run", "loss")).isfinite())
    pipeline = DiffusionPipeline.from_pretrained(result.student_folder)
    images = pipeline("food", num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 32, 32, 3)
    teacher, student = unets(tiny_folder, result.student_folder)
    assert student.num_parameters() < teacher.num_parameters()
    assert "of the teacher's" in (result.student_folder / "README.md").read_text()


def test_the_losses_of_output_and_of_blocks_fall(settings, tmp_path):
    """Over fifty steps on the same few images."""
    distill(settings("run", trainer__max_steps=50, trainer__learning_rate=2e-3, trainer__validate_every=50))
    for name in ("output", "hints"):
        losses = logged(tmp_path / "run", name)
        assert sum(losses[-10:]) < 0.7 * sum(losses[:10]), name


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been_regressors_too(settings):
    at_once = distill(settings("one", **EVERY_LOSS))
    distill(settings("other", trainer__max_steps=2, **EVERY_LOSS))
    resumed = distill(settings("other", **EVERY_LOSS), resume=True)
    for name, tensor in at_once.networks.trained.items():
        torch.testing.assert_close(resumed.networks.trained[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("method", ["consistency", "progressive", "latent_alignment"])
def test_its_steps_are_distilled_in_the_same_run(settings, tiny_folder, tmp_path, method):
    changes = {"progressive__start_steps": 4, "compression__trainer": {"max_steps": 2}}
    result = distill(settings("run", method=method, steps=[2, 1], **changes))
    assert len(logged(tmp_path / "run" / "stages" / "compression", "loss")) == 2
    teacher, small = unets(tiny_folder, tmp_path / "run" / "compressed")
    sampler = FewStepSampler.from_pretrained(result.student_folder)
    assert sampler.spec.method == method
    assert sampler.spec.num_inference_steps[0] == 2
    widths = sampler.pipeline.unet.config.block_out_channels
    assert tuple(widths) == tuple(small.config.block_out_channels) != tuple(teacher.config.block_out_channels)
    assert next(iter(sampler.images(["food"], [0], num_inference_steps=2))).shape == (1, 3, 32, 32)


def test_a_config_of_ones_own_keeps_what_fits(settings, tiny_folder, tmp_path):
    (tmp_path / "small.json").write_text('{"block_out_channels": [16, 32]}')
    changes = {"compress__factor": None, "compress__student_config": str(tmp_path / "small.json"), "trainer__max_steps": 1}
    _, student = unets(tiny_folder, distill(settings("run", **changes)).student_folder)
    assert list(student.config.block_out_channels) == [16, 32]


SD = family_called("StableDiffusionPipeline")


def test_blocks_are_matched_by_size_and_depth_also_where_the_middle_is_missing(tiny_folder):
    unet = UNet2DConditionModel.from_pretrained(tiny_folder / "unet")
    pruning, smaller = pruning_for(unet, SD), {**unet.config, "mid_block_type": None}
    paths = {hint.teacher_path: hint.student_path for hint in matched_blocks(pruning, smaller)}
    assert "mid_block" not in paths
    assert paths == {name: name for name in paths}
    assert len(paths) == 4
    with pytest.raises(
        ValueError, match=r"compression.features.layers middle: expects a block of the teacher, one of down_blocks"
    ):
        matched_blocks(pruning, unet.config, {"middle": "mid_block"})


def test_half_of_tiny_sd_spends_half_of_the_multiply_accumulates():
    from gendistill.networks.pruning.compress_config import CompressConfig

    unet = UNet2DConditionModel.from_pretrained("assets/tiny-sd/unet")
    half = UNet2DConditionModel.from_config(compressed_config(pruning_for(unet, SD), CompressConfig(factor=2)))
    assert macs_fraction(SD, unet, half) == pytest.approx(0.5, rel=0.1)


@pytest.fixture(scope="module")
def deep_sd3(tmp_path_factory):
    """The folder of a Stable Diffusion 3 of four blocks."""
    place = tmp_path_factory.mktemp("deep-sd3")
    pipeline = tiny_sd3(place / "tokenizer", t5=False)
    torch.manual_seed(3)
    deeper = SD3Transformer2DModel.from_config(pipeline.transformer.config, num_layers=4)
    pipeline.register_modules(transformer=deeper.eval())
    pipeline.save_pretrained(place / "pipeline")
    return place / "pipeline"


def test_a_transformer_of_half_the_blocks_by_the_command_line_is_opened_by_plain_diffusers(deep_sd3, tmp_path):
    (tmp_path / "prompts.txt").write_text("food\nanimals\n")
    settings = {
        "data.prompts": tmp_path / "prompts.txt",
        "data.num_synthetic": 4,
        "data.synthetic_steps": 2,
        "data.cache": tmp_path / "cache",
        "trainer.max_steps": 3,
        "trainer.batch_size": 4,
        "trainer.num_validation": 4,
        "trainer.trackers": [],
        "steps": [4],
        "quantization": "int8",
        "device": "cpu",
        **{name.replace("__", "."): weight for name, weight in EVERY_LOSS.items()},
    }
    options = [option for name, value in settings.items() for option in ("--set", f"{name}={value}")]
    done = ran("distill", deep_sd3, "--method", "compression", "--compress", "2", "--out", tmp_path / "run", *options)
    assert done.returncode == 0, done.stderr
    student = tmp_path / "run" / "student"
    plain, spec = plain_pipeline(student)
    kept, teacher = plain.transformer, SD3Transformer2DModel.from_pretrained(deep_sd3 / "transformer")
    assert (kept.config.num_layers, kept.config.num_attention_heads) == (2, 2)
    fraction = macs_fraction(family_called("StableDiffusion3Pipeline"), teacher, kept)
    assert fraction == pytest.approx(0.5, rel=0.1)
    assert f"{fraction:.3f} of the teacher's" in (student / "README.md").read_text()
    assert all(torch.tensor(logged(tmp_path / "run", "loss")).isfinite())

    own = FewStepSampler.from_pretrained(student, quantization="none")
    images = torch.cat(list(own.images(["food", "animals"], [0, 1], batch_size=1)))
    torch.testing.assert_close(images, plain_images(plain, spec, "sd3", ["food", "animals"], [0, 1]), atol=1e-5, rtol=0)
    sampler = FewStepSampler.from_pretrained(student)
    in_8_bits = {path for path, layer in sampler.pipeline.transformer.named_modules() if isinstance(layer, Int8Layer)}
    assert {"transformer_blocks.0.attn.to_q", "transformer_blocks.1.ff.net.2"} <= in_8_bits
    assert not any("norm" in path for path in in_8_bits)
    coarse = torch.cat(list(sampler.images(["food", "animals"], [0, 1], batch_size=1)))
    assert 0 < (coarse - images).abs().mean() < 0.02
    few = {"teacher_steps": 2, "student_steps": 2}
    fit = measure_fit(FewStepSampler.from_pretrained(deep_sd3), own, ["food", "animals"] * 2, list(range(4)), **few)
    pairs = [(layer.teacher, layer.student) for layer in fit.layers]
    assert pairs == [("transformer_blocks.1", "transformer_blocks.0"), ("transformer_blocks.3", "transformer_blocks.1")]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["consistency", "progressive", "latent_alignment"])
def test_the_steps_of_a_smaller_transformer_are_distilled_in_the_same_run(settings, deep_sd3, method):
    changes = {"progressive__start_steps": 4, "compression__trainer": {"max_steps": 2}}
    result = distill(settings("run", teacher=str(deep_sd3), method=method, steps=[2, 1], **changes))
    plain, spec = plain_pipeline(result.student_folder)
    assert plain.transformer.config.num_layers == 2
    images = next(iter(FewStepSampler.from_pretrained(result.student_folder).images(["food"], [0])))
    torch.testing.assert_close(images, plain_images(plain, spec, "sd3", ["food"], [0]), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"compress__factor": None}, "--method compression expects one of --compress 2, compress.blocks"),
        ({"lora__enabled": True}, "lora.enabled"),
        ({"compress__factor": None, "compress__macs": 5}, "compress.macs: --method compression expects compress.blocks"),
        ({"align__weight": 0.5}, "align.weight 0.5: --method compression has no auxiliary losses; expects 0"),
        ({"method": "decoder"}, "compress.factor: --method decoder expects decoder.width"),
        ({"compress__student_config": "a.json"}, "expects neither compress.factor"),
        ({"method": "consistency", "steps": [2], "compression__trainer": {"steps": 3}}, "compression.trainer"),
    ],
)
def test_mistakes_are_told_before_anything_is_opened(settings, changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        settings("run", **changes)


def test_a_teacher_of_another_kind_is_told(family_folder, settings):
    with pytest.raises(ValueError, match="compress: got a teacher whose network is a UNet2DModel; expects a UNet2D"):
        distill(settings("run", teacher=str(family_folder("unconditional")), data__prompts=None))


def test_a_network_that_cannot_be_as_small_is_told(tiny_folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("food\n")
    command = ["distill", str(tiny_folder), "--method", "compression", "--compress", "5000", "--out", str(tmp_path / "run")]
    told = ran(*command, "--set", f"data.prompts={tmp_path / 'prompts.txt'}")
    assert told.returncode == 2
    assert "factor 5000: the nearest is" in told.stdout + told.stderr
