"""A tiny autoencoder from the command line: it learns, fits with the teacher's halves, and opens in plain diffusers."""

import json
import re

import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, AutoencoderTiny, DiffusionPipeline, StableDiffusionPipeline
from PIL import Image
from tiny_runs import logged, settings_of
from warm_process import ran_warm

from gendistill.data.decoded import _augmented
from gendistill.diffusion.tiny_autoencoder import decoded_by, encoded_by, tiny_autoencoder
from gendistill.evaluation.decoder_figures import ROUND_TRIPS
from gendistill.run.distill import distill
from gendistill.samplers.codec import LatentCodec

COUNT, EDGE = 12, 32
OPEN = """
import sys
import diffusers, numpy as np
pipeline = diffusers.DiffusionPipeline.from_pretrained(sys.argv[1])
pipeline.set_progress_bar_config(disable=True)
assert "gendistill" not in sys.modules
image = pipeline("food", num_inference_steps=2, output_type="np").images[0]
print(type(pipeline.vae).__name__, image.shape, bool(np.isfinite(image).all()))
"""


@pytest.fixture
def settings(tiny_folder, tmp_path):
    """settings(name, **changes by dotted name) of a run of a few steps on smooth images, in tmp_path/name."""
    (tmp_path / "images").mkdir()
    across, down = np.meshgrid(np.linspace(0, 1, EDGE), np.linspace(0, 1, EDGE))
    for number in range(COUNT):
        colours = np.stack([across, down, np.full_like(across, number / COUNT)], -1)
        Image.fromarray((colours * 255).astype(np.uint8)).save(tmp_path / "images" / f"{number}.png")

    few = {"decoder__width": 8, "decoder__blocks": 1, "decoder__ema_decay": 0.5}
    trainer = {"max_steps": 30, "batch_size": 4, "learning_rate": 5e-3, "checkpoint_every": 10, "validate_every": 15}

    def make(name, **changes):
        given = {"method": "decoder", "data__path": str(tmp_path / "images"), "data__prompts": None, **few}
        given |= {f"trainer__{name}": value for name, value in trainer.items()}
        return settings_of(tmp_path, tiny_folder, name, **{**given, "trainer__num_validation": COUNT, **changes})

    return make


def test_the_encoder_learns_where_its_weight_is_above_nothing(settings, tmp_path):
    distill(settings("run", decoder__encoder={0.5: 0, 0.6: 1}, trainer__log_every=1))
    assert len(logged(tmp_path / "run", "loss")) == 30
    assert len(logged(tmp_path / "run", "latents")) == 14  # of 30 steps those after half


def test_both_halves_learn_and_the_pipeline_opens_in_plain_diffusers(settings, tmp_path):
    result = distill(settings("run"))
    folder = result.student_folder
    assert logged(tmp_path / "run", "loss")[-1] < 0.7 * logged(tmp_path / "run", "loss")[0]
    assert logged(tmp_path / "run", "latents")[-1] < logged(tmp_path / "run", "latents")[0]
    told = json.loads((folder / "decoder.json").read_text())
    assert told["psnr"].keys() == set(ROUND_TRIPS)
    assert told["psnr_lost"] == pytest.approx(told["psnr"][ROUND_TRIPS[0]] - told["psnr"][ROUND_TRIPS[1]])
    assert told["parameters"]["tiny"] < told["parameters"]["teacher"]
    opened = ran_warm(OPEN, folder, folder=tmp_path)
    assert opened.stdout.split("\n")[0] == f"AutoencoderTiny ({EDGE}, {EDGE}, 3) True", opened.stderr
    assert "takes" not in (folder / "README.md").read_text()
    assert (tmp_path / "run" / "samples" / "step-000030.png").is_file()


def test_what_is_exported_is_the_average_that_validated_best(settings):
    result = distill(settings("run"))
    vae = DiffusionPipeline.from_pretrained(result.student_folder).vae
    assert isinstance(vae, AutoencoderTiny)
    best = max(-line["psnr_lost"] for line in logged(result.student_folder.parent, "validation"))
    assert -result.exported.loss == pytest.approx(best, abs=1e-3)


def test_without_images_the_teacher_generates_what_is_decoded(settings, tmp_path):
    (tmp_path / "prompts.txt").write_text("food\nanimals\n")
    generated = {"data__num_synthetic": 4, "data__synthetic_steps": 2, "data__prompts": str(tmp_path / "prompts.txt")}
    result = distill(settings("run", data__path=None, trainer__num_validation=4, **generated))
    assert result.exported.psnr[ROUND_TRIPS[0]] > 100  # the teacher's own decoding is the image
    assert result.exported.images == 4
    assert "dB from the images of the teacher's decoder (4 images)" in result.describe()
    told = json.loads((result.student_folder / "decoder.json").read_text(), parse_constant=pytest.fail)  # no Infinity
    assert told["psnr"][ROUND_TRIPS[0]] is None
    validated = [line["psnr"][ROUND_TRIPS[1]] for line in logged(tmp_path / "run", "validation")]
    assert told["psnr"][ROUND_TRIPS[1]] == pytest.approx(max(validated), abs=1e-3)
    assert told["best_step"] == 30  # it went on learning, and the last is the best


def test_a_run_starts_where_another_ended(settings, tmp_path):
    first = distill(settings("first"))
    again = settings("again", decoder__start=str(first.student_folder), decoder__width=64, trainer__max_steps=1)
    result = distill(again)
    begun, *_ = logged(tmp_path / "again", "validation")
    assert begun["psnr_lost"] == pytest.approx(first.exported.loss, abs=0.02)  # the student's weights are in half precision
    vae = DiffusionPipeline.from_pretrained(result.student_folder).vae
    assert vae.config.decoder_block_out_channels[0] == 8  # those of the first


def test_what_a_run_cannot_start_with_is_told(settings, tiny_folder, tmp_path):
    with pytest.raises(ValueError, match=r"decoder.start .*: cannot be opened as an AutoencoderTiny"):
        distill(settings("run", decoder__start=str(tmp_path / "nowhere")))
    AutoencoderTiny(encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
                    num_decoder_blocks=(1, 1)).save_pretrained(tmp_path / "coarse")  # fmt: skip
    with pytest.raises(ValueError, match="has latents of 4 channels, 2 pixels wide; expects 4 channels, 4 pixels"):
        distill(settings("other", decoder__start=str(tmp_path / "coarse")))


def test_copies_of_the_images_are_learned_from_and_what_is_held_out_is_not_copied(settings, tmp_path):
    result = distill(
        settings("run", decoder__copies=3, decoder__blocks=[2, 1, 0], validation_reference=str(tmp_path / "images"))
    )
    [data] = logged(tmp_path / "run", "data")
    assert data["rows"] == 3 * COUNT
    assert result.exported.images == COUNT
    vae = DiffusionPipeline.from_pretrained(result.student_folder).vae
    assert list(vae.config.num_decoder_blocks) == [2, 1, 0]
    assert list(vae.config.num_encoder_blocks) == [0, 1, 2]


def test_copies_are_others_of_the_same_image_and_always_the_same():
    image = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    first, *others = _augmented(image, "a", 4, 0)
    assert torch.equal(first, image)
    assert len({tuple(other.flatten().tolist()) for other in others}) == 3
    assert all(other.shape == image.shape and other.abs().max() <= 1 for other in others)
    torch.rand(1)
    assert all(torch.equal(one, other) for one, other in zip(others, _augmented(image, "a", 4, 0)[1:], strict=True))


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(settings):
    at_once = distill(settings("one"))
    distill(settings("other", trainer__max_steps=10))
    resumed = distill(settings("other"), resume=True)
    one, other = (DiffusionPipeline.from_pretrained(of.student_folder).vae.state_dict() for of in (at_once, resumed))
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"lora__enabled": True}, "lora.enabled: a tiny autoencoder has weights of its own; expects false"),
        ({"data__crop": "buckets"}, "data.crop buckets: a decoder is trained on images of one size; expects center or random"),
        ({"decoder__width": 2}, "setting decoder.width is 2; expects at least 4"),
        (
            {"decoder__blocks": [1, 2]},
            "decoder.blocks [1, 2]: expects 1 or more, or a list of 3 numbers, one a resolution, the first above 0",
        ),
    ],
)
def test_what_cannot_be_is_told_in_a_sentence(settings, changes, sentence):
    with pytest.raises(ValueError, match=re.escape(sentence)) as error:
        distill(settings("run", **changes))
    assert str(error.value) == sentence  # and nothing more


def test_a_teacher_that_generates_pixels_has_no_decoder(family_folder, settings):
    with pytest.raises(ValueError, match="generates pixels and has no decoder; expects a latent diffusion"):
        distill(settings("run", teacher=str(family_folder("unconditional"))))


def test_latents_are_those_that_the_denoiser_sees(teacher):
    """Scaled: what a pipeline divides by the scaling factor before it decodes, and what it multiplies after it encodes."""
    vae = teacher.pipeline.vae
    tiny = tiny_autoencoder(vae, 8, 1)
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    pipeline = StableDiffusionPipeline(**{**teacher.pipeline.components, "vae": tiny}, requires_safety_checker=False)
    theirs = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor, return_dict=False)[0]
    torch.testing.assert_close(decoded_by(tiny, latents), theirs.clamp(-1, 1))
    assert pipeline.vae_scale_factor == teacher.codec.factor
    assert encoded_by(tiny, decoded_by(tiny, latents)).shape == latents.shape


@pytest.mark.slow
def test_it_fits_stable_diffusions_own_autoencoder(tiny_folder, settings, tmp_path):
    """The architecture of SD 1.5's, with random weights."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(128, 256, 512, 512),
        layers_per_block=2,
        latent_channels=4,
        sample_size=512,
        scaling_factor=0.18215,
    )
    pipeline = StableDiffusionPipeline.from_pretrained(tiny_folder)
    StableDiffusionPipeline(**{**pipeline.components, "vae": vae}, requires_safety_checker=False).save_pretrained(
        tmp_path / "teacher"
    )
    assert LatentCodec(vae).factor == 8
    taesd = {"decoder__width": 64, "decoder__blocks": 3}
    teacher = str(tmp_path / "teacher")
    result = distill(settings("run", teacher=teacher, trainer__max_steps=2, trainer__num_validation=4, **taesd))
    opened = ran_warm(OPEN, result.student_folder, folder=tmp_path)
    assert opened.stdout.split("\n")[0] == "AutoencoderTiny (64, 64, 3) True", opened.stderr
    print(result.exported.describe())
    assert min(result.exported.speed_up.values()) > 4
