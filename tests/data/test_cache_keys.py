"""Every cache has the key of everything that made its rows, and of nothing else."""

import json
import shutil
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_gans import tiny_gan

from gendistill.data.data_config import DataConfig
from gendistill.data.decoded import DecodedLatents, ReconstructedImages
from gendistill.data.encode import EncodedImages, GeneratedLatents, prepare_data
from gendistill.data.gan_batches import NoData
from gendistill.data.gan_images import FittedImages
from gendistill.data.gan_pairs import GeneratedPairs
from gendistill.data.sources.folder import ImageFolder
from gendistill.data.sources.framing import Framing
from gendistill.data.sources.prompts import Prompts
from gendistill.data.trajectories import GeneratedTrajectories, TrajectoryEnds, generate_trajectories
from gendistill.data.trajectory_teachers import TrajectoryTeachers
from gendistill.diffusion.guidance import GuidanceConfig
from gendistill.diffusion.teacher import load_teacher
from gendistill.gan.generator import Generator
from gendistill.runtime.store import cache_key
from gendistill.samplers import FewStepSampler
from gendistill.samplers.provenance import provenance

SQUARE = Framing(((32, 32),))


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    for number in range(2):
        noise = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text("food")
    return folder


@pytest.fixture(scope="module")
def latents(tiny_folder, tmp_path_factory):
    """Latents in a cache, as the data of trajectories."""
    place = tmp_path_factory.mktemp("latents")
    (place / "prompts.txt").write_text("food\nanimals\n")
    settings = DataConfig(prompts=str(place / "prompts.txt"), cache=str(place), num_synthetic=2, synthetic_steps=1)
    return prepare_data(settings, load_teacher(tiny_folder), 0)


def makers(teacher, images, latents):
    """One maker of rows for each kind of cache that a diffusion teacher fills."""
    source, codec = ImageFolder(images), teacher.codec
    alone = TrajectoryTeachers(teacher, {}, list)
    trajectories = GeneratedTrajectories(teacher, alone, latents, 6, 4, 3.0)
    return {
        "encoded": EncodedImages(source, SQUARE, "empty", codec, teacher.prompt_encoder),
        "generated": GeneratedLatents(teacher, Prompts(["food", "animals"]), 4, 2, 3.0, 0),
        "trajectories": trajectories,
        "reconstructed": ReconstructedImages(source, SQUARE, codec, 2, 0),
        "decoded": DecodedLatents(latents, codec),
        "sampled": FewStepSampler(teacher.pipeline),
    }


def keys(*arguments):
    made = makers(*arguments)
    sampler = made.pop("sampled")
    return {name: cache_key(**maker.key_parts()) for name, maker in made.items()} | {
        "sampled": cache_key(**sampler.described(4, 3.0))
    }


def configured(part, **changes):
    """A change of the config of a part in the teacher's folder."""

    def change(folder):
        file = next((folder / part).glob("*config.json"))
        config = json.loads(file.read_text())
        assert all(config.get(name) != value for name, value in changes.items())
        file.write_text(json.dumps({**config, **changes}))

    return change


def other_text(name):
    """A change of a file of the tokenizer: two words are exchanged."""

    def change(folder):
        file = folder / "tokenizer" / name
        text = json.loads(file.read_text())
        vocabulary = text["model"]["vocab"]
        first, second = list(vocabulary)[-2:]
        vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
        file.write_text(json.dumps(text))

    return change


@pytest.fixture(scope="module")
def before(tiny_folder, images, latents):
    return keys(load_teacher(tiny_folder), images, latents)


ALL = {"encoded", "generated", "trajectories", "reconstructed", "decoded", "sampled"}
GENERATED = {"generated", "trajectories", "sampled"}
TEXT = {"encoded", *GENERATED}
FILES = {
    "prediction type": (configured("scheduler", prediction_type="v_prediction"), GENERATED),
    "noise schedule": (configured("scheduler", beta_end=0.02), GENERATED),
    "zero terminal SNR": (configured("scheduler", rescale_betas_zero_snr=True), GENERATED),
    "spacing of the solver": (configured("scheduler", timestep_spacing="trailing"), GENERATED),
    "VAE scaling": (configured("vae", scaling_factor=0.5), ALL),
    "VAE shift": (configured("vae", shift_factor=0.1), ALL),
    "VAE precision": (configured("vae", force_upcast=False), ALL),
    "latents' mean and deviation": (configured("vae", latents_mean=[0.1] * 4, latents_std=[0.9] * 4), ALL),
    "size": (configured("unet", sample_size=16), GENERATED),
    "activation of the text encoder": (configured("text_encoder", hidden_act="gelu"), TEXT),
    "vocabulary": (other_text("tokenizer.json"), TEXT),
    "a card": (lambda folder: (folder / "README.md").write_text("another card"), set()),
}


@pytest.mark.parametrize("change", FILES)
def test_another_config_of_the_same_weights_has_keys_of_its_own(tiny_folder, before, tmp_path, images, latents, change):
    edit, affected = FILES[change]
    folder = shutil.copytree(tiny_folder, tmp_path / "a copy with another name")  # the folder's path is no input
    edit(folder)
    after = keys(load_teacher(folder), images, latents)
    assert {name for name in ALL if after[name] != before[name]} == affected


def moved_weight(part):
    def change(teacher):
        next(getattr(teacher.pipeline, part).parameters()).data.add_(1e-3)
        return teacher

    return change


def in_half(teacher):
    teacher.pipeline.to(torch.bfloat16)
    return teacher


OPEN = {
    "weights of the denoiser": (moved_weight("unet"), GENERATED),
    "weights of the VAE": (moved_weight("vae"), ALL),
    "weights of the text encoder": (moved_weight("text_encoder"), TEXT),
    "dtype": (in_half, ALL),
    "resolution": (lambda teacher: replace(teacher, size=(64, 64)), {"generated", "trajectories"}),
    "prediction type of the denoiser": (
        lambda teacher: replace(teacher, denoiser=teacher.denoiser.with_prediction_type("v_prediction")),
        {"generated", "trajectories"},
    ),
    "name": (lambda teacher: replace(teacher, source="elsewhere", commit="abc"), set()),
}


@pytest.mark.parametrize("change", OPEN)
def test_weights_dtype_and_size_are_in_the_keys_and_names_are_not(teacher, before, images, latents, change):
    edit, affected = OPEN[change]
    after = keys(edit(teacher), images, latents)
    assert {name for name in ALL if after[name] != before[name]} == affected


def test_every_setting_of_a_maker_is_in_its_key(teacher, images, latents, tmp_path):
    """Each field of each maker is changed in turn: a field that is not tried here fails the test."""
    trajectories = generate_trajectories(teacher, latents, GuidanceConfig(), str(tmp_path / "t"), count=2, steps=1)
    with_patterns = TrajectoryTeachers(teacher, {teacher.source: "food"}, lambda: ["food", "animals"])
    (tmp_path / "one").mkdir()
    Image.new("RGB", (40, 32)).save(tmp_path / "one" / "0.png")
    other = load_teacher(teacher.source)
    next(other.pipeline.vae.parameters()).data.add_(1)
    next(other.pipeline.unet.parameters()).data.add_(1)
    next(other.pipeline.text_encoder.parameters()).data.add_(1)
    others = {
        "source": ImageFolder(tmp_path / "one"),
        "framing": replace(SQUARE, crop="random", seed=1),
        "missing_caption": "skip",
        "codec": other.codec,
        "prompt_encoder": other.prompt_encoder,
        "teacher": other,
        "teachers": with_patterns,
        "prompts": Prompts(["animals", "food"]),  # another order
        "count": 5,
        "steps": 7,
        "guidance_scale": 1.5,
        "guidance": (3.0, 4.0),
        "seed": 9,
        "copies": 3,
        "data": trajectories,
        "student": other.denoiser,
        "size": (16, 32),
        "spec": replace(tiny_gan().generator.spec, classes=("a", "b", "c")),
    }
    gan = tiny_gan().generator
    diffusion = makers(teacher, images, latents)
    del diffusion["sampled"]
    of_gans = [FittedImages(ImageFolder(images), (32, 32), gan.spec), GeneratedPairs(gan, NoData(), 8)]
    for maker in (*diffusion.values(), *of_gans, TrajectoryEnds(trajectories, teacher.denoiser, 2)):
        key = cache_key(**maker.key_parts())
        assert cache_key(**replace(maker).key_parts()) == key
        for field in fields(maker):
            value = others[field.name]
            if isinstance(maker, GeneratedPairs) and field.name == "teacher":
                value = tiny_gan(scale=1.5).generator
            if isinstance(maker, TrajectoryEnds | GeneratedPairs) and field.name == "data":
                value = latents
            changed = replace(maker, **{field.name: value})
            assert cache_key(**changed.key_parts()) != key, (type(maker).__name__, field.name)


def test_a_generators_layers_are_in_its_key_and_what_has_no_provenance_is_an_error():
    spec = tiny_gan().generator.spec
    steep, flat = (Generator(torch.nn.Sequential(torch.nn.LeakyReLU(slope)), spec) for slope in (0.2, 0.1))
    assert GeneratedPairs(steep, NoData(), 8).key_parts() != GeneratedPairs(flat, NoData(), 8).key_parts()
    with pytest.raises(TypeError, match=r"^object: has no provenance for the key of a cache; expects"):
        provenance({"something": object()})
