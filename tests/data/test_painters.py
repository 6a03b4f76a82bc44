"""Ways that several teachers generate."""

import shutil
from functools import partial

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from gendistill.data.data_config import DataConfig
from gendistill.data.encode import prepare_data, training_texts
from gendistill.data.trajectories import generate_trajectories
from gendistill.diffusion.guidance import GuidanceConfig
from gendistill.run.config import load_config
from gendistill.runtime.random import PerSampleRandom

GUIDED = GuidanceConfig(scale=3.0)
PROMPTS = ["food", "animals", "more food"]


@pytest.fixture
def config(tmp_path):
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS))
    return DataConfig(prompts=str(tmp_path / "prompts.txt"), cache=str(tmp_path / "cache"), num_synthetic=6, synthetic_steps=2)


@pytest.fixture
def data(teacher, config):
    return prepare_data(config, teacher, 0)


@pytest.fixture
def another(tiny_folder, tmp_path):
    """another(part): the folder of the tiny pipeline with other weights of a part."""

    def make(part="unet"):
        folder = shutil.copytree(tiny_folder, tmp_path / f"other-{part}")
        file = next((folder / part).glob("*.safetensors"))
        save_file({name: 1.2 * tensor for name, tensor in load_file(file).items()}, file, metadata={"format": "pt"})
        return str(folder)

    return make


def trajectories(teacher, data, config, tmp_path, teachers):
    texts = partial(training_texts, config, teacher, data, 0)
    place = str(tmp_path / "trajectories")
    generated = generate_trajectories(teacher, data, GUIDED, place, count=6, steps=3, teachers=teachers, texts=texts)
    rows = torch.stack([torch.arange(6)] * 2, 1)
    return generated.batch(rows, PerSampleRandom(0, 0, 0, 6)).trajectories


def test_the_average_of_a_teacher_with_itself_generates_as_it_does_alone(teacher, data, config, tmp_path, tiny_folder):
    alone = trajectories(teacher, data, config, tmp_path, {})
    twice = trajectories(teacher, data, config, tmp_path, {str(tiny_folder): 0.7})
    torch.testing.assert_close(twice.points, alone.points, atol=2e-3, rtol=2e-3)  # kept in half precision


def test_an_average_lies_between_its_teachers_and_nearer_to_the_heavier(teacher, data, config, tmp_path, another):
    other = another()
    alone, as_other = (trajectories(teacher, data, config, tmp_path, of).points[:, 1] for of in ({}, {other: ""}))
    light, heavy = (trajectories(teacher, data, config, tmp_path, {other: of}).points[:, 1] for of in (0.25, 1.0))
    torch.testing.assert_close(heavy, (alone + as_other) / 2, atol=4e-3, rtol=4e-3)  # the first step is linear in what is said
    torch.testing.assert_close(light, 0.8 * alone + 0.2 * as_other, atol=4e-3, rtol=4e-3)
    assert (alone - as_other).abs().max() > 0.05


def test_a_pattern_chooses_the_prompts_that_another_teacher_generates(teacher, data, config, tmp_path, another):
    other = another()
    alone, as_other = (trajectories(teacher, data, config, tmp_path, of) for of in ({}, {other: ""}))
    chosen = trajectories(teacher, data, config, tmp_path, {other: "(?i)Food$"})
    embedded = teacher.encode_prompts(["animals"])["prompt_embeds"]
    of_animals = (chosen.conditioning["prompt_embeds"] - embedded).abs().amax((1, 2)) < 1e-2
    assert 0 < of_animals.sum() < 6
    assert torch.equal(chosen.points[of_animals], alone.points[of_animals])
    assert torch.equal(chosen.points[~of_animals], as_other.points[~of_animals])
    assert not torch.equal(alone.points[~of_animals], as_other.points[~of_animals])


@pytest.mark.parametrize(
    ("part", "sentence"),
    [
        ("vae", "has another latent space than .*; expects one with the same VAE"),
        ("text_encoder", "reads prompts otherwise than"),
    ],
)
def test_a_teacher_of_another_space_is_refused(teacher, data, config, tmp_path, another, part, sentence):
    with pytest.raises(ValueError, match=f"align.teachers .*: {sentence}"):
        trajectories(teacher, data, config, tmp_path, {another(part): 1.0})


def test_a_teacher_of_another_schedule_is_refused(teacher, data, config, tmp_path, tiny_folder):
    folder = shutil.copytree(tiny_folder, tmp_path / "other")
    file = folder / "scheduler" / "scheduler_config.json"
    file.write_text(file.read_text().replace("0.012", "0.02"))
    with pytest.raises(ValueError, match=r"align.teachers .*: was trained on another noise schedule"):
        trajectories(teacher, data, config, tmp_path, {str(folder): 1.0})


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"align.teachers": {"b": 0}}, "setting align.teachers is .*; expects a weight above 0 for b, or a pattern"),
        ({"align.teachers": {"b": "("}}, "setting align.teachers is .*; expects a regular expression for b"),
        ({"align.teachers": {"b": 1}, "method": "consistency"}, "align.teachers: these teachers generate the trajectories of alignment"),
    ],
)
def test_weights_and_patterns_that_are_none_are_refused(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_config(None, {"method": "latent_alignment", **changes})


def test_the_prompt_of_every_row_is_known_of_images_too(teacher, tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(24):
        (folder / f"{number:02d}.txt").write_text(["food", "animals", "emoji"][number % 3])
        Image.new("RGB", (32, 32)).save(folder / f"{number:02d}.png")
    (folder / "07.png").write_bytes(b"no image")
    config = DataConfig(path=str(folder), cache=str(tmp_path / "cache"))
    data = prepare_data(config, teacher, 0)
    texts = training_texts(config, teacher, data, 0)
    assert len(texts) == len(data) == 23
    kept = data.batch(torch.arange(23), PerSampleRandom(0, 0, 0, 23)).conditioning["prompt_embeds"].float()
    torch.testing.assert_close(kept, teacher.encode_prompts(texts)["prompt_embeds"], atol=2e-3, rtol=2e-3)
