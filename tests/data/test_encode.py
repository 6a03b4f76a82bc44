"""`prepare_data`: what reaches the cache, what does not, and when it is made again."""

import io
import json
import logging
import time
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from fresh_process import FreshProcess
from PIL import Image
from safetensors.torch import load_file, save_file

from gendistill.data import cached, encode
from gendistill.data.data_config import DataConfig
from gendistill.data.encode import prepare_data
from gendistill.diffusion.teacher import load_teacher
from gendistill.run.config import load_config
from gendistill.run.distill import distill
from gendistill.runtime.random import PerSampleRandom

COUNT = 24


def png(number, size=(40, 32)):
    file = io.BytesIO()
    noise = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(cached, "PART_SIZE", 5)
    monkeypatch.setattr(encode, "images_at_once", lambda resolution: 2)


@pytest.fixture
def images(tmp_path):
    """A folder of 24 captioned images."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number in range(COUNT):
        (folder / f"{number:02}.png").write_bytes(png(number))
        (folder / f"{number:02}.txt").write_text("food" if number % 2 else "animals")
    return folder


@pytest.fixture
def prepare(images, teacher, tmp_path):
    """prepare(seed=..., cache=..., **settings of DataConfig)"""

    def run(seed=0, cache="cache", **settings):
        config = DataConfig(**{"path": str(images), "cache": str(tmp_path / cache), **settings})
        return prepare_data(config, replace(teacher, size=config.size or teacher.size), seed)

    return run


def all_rows(data):
    """Every row, group after group."""
    first, rows = 0, {}
    for group, count in data.cache.groups.items():
        rows |= {f"{group}/{name}": of for name, of in data.cache.rows(range(first, first + count)).items()}
        first += count
    return rows


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def keys(tmp_path, cache="cache"):
    return {folder.name for folder in (tmp_path / cache).iterdir() if folder.is_dir()}


# ---- what a row is


def test_a_row_is_the_moments_and_the_prompt_of_its_image(prepare, images, teacher):
    data = prepare()
    assert len(data) == COUNT
    rows = data.cache.rows([3])
    image = Image.open(images / "03.png").crop((4, 0, 36, 32))
    tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 127.5 - 1
    assert torch.allclose(rows["moments"].float(), teacher.codec.moments(tensor), atol=2e-3, rtol=2e-3)
    assert torch.allclose(
        rows["condition.prompt_embeds"].float(), teacher.encode_prompts(["food"])["prompt_embeds"], atol=2e-3, rtol=2e-3
    )


def test_a_random_crop_is_the_seeds_and_the_images_own(prepare):
    center, random = all_rows(prepare()), all_rows(prepare(crop="random"))
    assert not same(center, random)
    assert same(random, all_rows(prepare(crop="random", cache="elsewhere")))
    assert not same(random, all_rows(prepare(crop="random", seed=1)))
    assert same(center, all_rows(prepare(seed=1)))


# ---- buckets


@pytest.fixture
def shapes(images):
    """The same folder with wide, square and tall images."""
    for number in range(COUNT):
        size = {0: (32, 32), 1: (50, 30), 2: (30, 50)}[0 if number < 15 else 1 + number % 2]
        (images / f"{number:02}.png").write_bytes(png(number, size))


def test_buckets_keep_the_shape_of_images(prepare, shapes):
    data = prepare(crop="buckets")
    assert data.cache.groups == {"24x40": 4, "32x32": 15, "40x24": 5}
    assert {name: tuple(rows.shape[1:]) for name, rows in all_rows(data).items() if "moments" in name} == {
        "24x40/moments": (8, 6, 10),
        "32x32/moments": (8, 8, 8),
        "40x24/moments": (8, 10, 6),
    }


def test_a_batch_holds_one_bucket_and_every_image_is_seen_as_often(prepare, shapes):
    data = prepare(crop="buckets")
    seen = torch.zeros(COUNT, dtype=torch.int64)
    for step in range(COUNT):
        rows = data.rows_of_step(3, step, 4)
        assert torch.equal(rows, data.rows_of_step(3, step, 4))
        seen += torch.bincount(rows, minlength=COUNT)
        whole = data.batch(rows, PerSampleRandom(3, step, 0, 4))
        half = data.batch(rows[2:], PerSampleRandom(3, step, 2, 2))  # what the second of two processes reads
        assert torch.equal(whole.latents[2:], half.latents)
        assert len(whole.conditioning["prompt_embeds"]) == 4
    assert seen.tolist() == [4] * COUNT
    assert not torch.equal(data.rows_of_step(3, 0, 4), data.rows_of_step(4, 0, 4))


def test_a_run_trains_on_buckets_and_logs_what_its_data_were(images, shapes, tiny_folder, tmp_path):
    (images / "03.png").write_bytes(b"not an image")
    (images / "04.txt").unlink()
    settings = {"teacher": str(tiny_folder), "out": str(tmp_path / "run"), "device": "cpu", "steps": [2], "solvers": ["ddim"]}
    of_data = {"data.path": str(images), "data.cache": str(tmp_path / "cache"), "data.crop": "buckets"}
    trainer = {"trainer.max_steps": 6, "trainer.batch_size": 2, "trainer.num_validation": 4, "trainer.trackers": []}
    result = distill(load_config(None, settings | of_data | trainer))
    assert result.training.steps == 6
    logged = json.loads((tmp_path / "run" / "log.jsonl").read_text().splitlines()[0])["data"]
    assert logged["buckets"] == {"24x40": 4, "32x32": 14, "40x24": 5}
    assert (logged["rows"], logged["broken"], logged["missing_captions"]) == (23, 1, 1)


# ---- captions


def test_what_has_no_caption_is_trained_left_out_or_stops_the_run(prepare, images, teacher, caplog):
    (images / "07.txt").unlink()
    (images / "08.txt").write_text(" \n")
    data = prepare()
    assert "2 of 24 images have no caption" in caplog.text
    assert (len(data), data.summary()["missing_captions"], data.summary()["left_out"]) == (COUNT, 2, 0)
    empty = teacher.encode_prompts([""])["prompt_embeds"]
    assert torch.allclose(data.cache.rows([7])["condition.prompt_embeds"].float(), empty, atol=2e-3, rtol=2e-3)
    data = prepare(missing_caption="skip")
    assert (len(data), data.summary()["missing_captions"], data.summary()["left_out"]) == (COUNT - 2, 0, 2)
    assert "skipped.jsonl" in caplog.text
    with pytest.raises(ValueError, match=r"data: '07\.png' of .* has no caption; data\.missing_caption must be empty or skip"):
        prepare(missing_caption="error")


# ---- small images


def test_images_smaller_than_the_teachers_are_enlarged_and_counted(prepare, images, caplog):
    for number, size in enumerate([(20, 20), (40, 31), (32, 32)]):
        (images / f"{number:02}.png").write_bytes(png(number, size))
    data = prepare()
    assert (len(data), data.summary()["enlarged"]) == (COUNT, 2)
    assert "2 of 24 images are smaller than the teacher's and are enlarged" in caplog.text


# ---- broken images


def test_a_broken_image_is_left_out_and_listed(prepare, images, caplog):
    (images / "11.png").write_bytes(png(11)[:200])
    data = prepare()
    assert (len(data), data.summary()["broken"]) == (COUNT - 1, 1)
    (line,) = (data.cache.folder / "skipped.jsonl").read_text().splitlines()
    assert json.loads(line)["key"] == "11.png"
    assert "truncated" in json.loads(line)["reason"]
    notices = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    (notice,) = notices
    place = data.cache.folder / "skipped.jsonl"
    assert notice.startswith(
        f"data: 1 of 24 images are left out; they are listed in {place}, such as 11.png: cannot be decoded"
    )
    prepare()
    assert len(caplog.records) == 2  # said at each start


def test_too_many_broken_images_stop_the_run(prepare, images):
    for number in (2, 11):
        (images / f"{number:02}.png").write_bytes(b"not an image")
    for _ in range(2):
        with pytest.raises(ValueError, match=r"data: 2 of 24 images of .* cannot be decoded; expects at most 5%; they are l"):
            prepare()


def test_an_encoder_that_overflows_names_the_image(prepare, teacher):
    with torch.no_grad():
        teacher.pipeline.vae.quant_conv.weight.mul_(torch.inf)
    with pytest.raises(ValueError, match=r"encoding '00\.png' gives values that are not finite; expects undamaged weights"):
        prepare()


# ---- the cache


def test_other_data_settings_or_teachers_are_other_caches(prepare, images, teacher, tmp_path):
    def made():
        before = keys(tmp_path) if (tmp_path / "cache").is_dir() else set()
        return lambda: len(keys(tmp_path) - before)

    for settings in ({}, {"crop": "random"}, {"crop": "buckets"}, {"resolution": 64}, {"missing_caption": "skip"}):
        new = made()
        prepare(**settings)
        assert new() == 1, settings
        prepare(**settings)
        assert new() == 1, settings
    for change in (
        lambda: (images / "05.txt").write_text("a new caption"),
        lambda: (images / "05.png").write_bytes(png(99)),
        lambda: (images / "05.png").unlink(),
        lambda: teacher.pipeline.vae.quant_conv.weight.data.mul_(2),
        lambda: next(teacher.pipeline.text_encoder.parameters()).data.add_(1),
    ):
        new = made()
        change()
        prepare()
        assert new() == 1


def rewritten(change):
    """Damage that leaves a sound safetensors file behind, with other tensors."""

    def damage(file):
        save_file({name: change(tensor) for name, tensor in load_file(file).items()}, file)

    return damage


DAMAGE = {
    "not a number": rewritten(lambda tensor: tensor * torch.nan),
    "other shapes": rewritten(lambda tensor: tensor[..., :1].contiguous()),
    "fewer rows": rewritten(lambda tensor: tensor[:1].contiguous()),
    "cut short": lambda file: file.write_bytes(file.read_bytes()[:-10]),
    "a pickle": lambda file: torch.save({"x": 1}, file),
    "empty": lambda file: file.write_bytes(b""),
    "gone": lambda file: file.unlink(),
    "not described": lambda file: file.with_suffix(".json").unlink(),
    "described wrongly": lambda file: file.with_suffix(".json").write_text("{}"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_cache_is_made_whole_again(prepare, tmp_path, damage, caplog):
    data = prepare()
    whole = all_rows(data)
    DAMAGE[damage](data.cache.folder / "rows-00002.safetensors")
    assert same(all_rows(prepare()), whole)
    assert ("is damaged" in caplog.text) == (not damage.endswith(("described", "wrongly")))
    assert len(keys(tmp_path)) == 1


def test_a_run_that_dies_while_encoding_loses_one_part_at_most(prepare, teacher, monkeypatch):
    whole, encoded = all_rows(prepare(cache="whole")), []
    moments = teacher.codec.moments

    def dies(images):
        if sum(encoded) >= 12:
            raise KeyboardInterrupt
        encoded.append(len(images))
        return moments(images)

    monkeypatch.setattr(teacher.codec, "moments", dies)
    with pytest.raises(KeyboardInterrupt):
        prepare()
    monkeypatch.setattr(teacher.codec, "moments", lambda images: encoded.append(len(images)) or moments(images))
    assert same(all_rows(prepare()), whole)
    assert sum(encoded) <= COUNT + 5


def encode_with_another(folder, images, place, number):
    """Encode the images into `place`/shared as soon as another process is ready for it, and print how many."""
    cached.PART_SIZE, encode.images_at_once = 5, lambda resolution: 2
    teacher, encoded = load_teacher(folder), []
    (place / f"ready-{number}").touch()
    while len(list(place.glob("ready-*"))) < 2:
        time.sleep(0.01)
    encode.prepare_data(DataConfig(path=str(images), cache=str(place / "shared"), crop="buckets"), teacher, 0, encoded.append)
    print(sum(encoded), flush=True)


def test_processes_that_encode_at_once_share_the_work_and_make_the_same_bytes(prepare, images, tiny_folder, tmp_path):
    prepare(cache="alone", crop="buckets")
    work = [partial(encode_with_another, tiny_folder, images, tmp_path, number) for number in range(2)]
    processes = [FreshProcess(each, tmp_path / f"out-{number}") for number, each in enumerate(work)]
    assert [process.wait() for process in processes] == [0, 0], [process.text for process in processes]
    encoded = [int(process.text.split()[-1]) for process in processes]
    assert sum(encoded) == COUNT  # each image once, whoever did it
    (key,) = keys(tmp_path, "alone")
    files = sorted(file.name for file in (tmp_path / "alone" / key).glob("*.*"))
    assert sorted(file.name for file in (tmp_path / "shared" / key).glob("*.*")) == files
    assert len([name for name in files if name.endswith(".safetensors")]) == 5
    for name in files:
        assert (tmp_path / "shared" / key / name).read_bytes() == (tmp_path / "alone" / key / name).read_bytes()


def test_what_the_teacher_generates_is_cached_the_same_way(prepare, tmp_path):
    (tmp_path / "prompts.txt").write_text("food\nanimals\n")
    settings = {"path": None, "prompts": str(tmp_path / "prompts.txt"), "num_synthetic": 7, "synthetic_steps": 1}
    generated = all_rows(prepare(**settings))
    assert len(generated["generated/moments"]) == 7
    assert same(all_rows(prepare(**settings)), generated)
    assert same(all_rows(prepare(cache="elsewhere", **settings)), generated)
