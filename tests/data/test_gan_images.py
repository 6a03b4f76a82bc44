"""Images that a GAN learns on: cut, labelled and kept once."""

import dataclasses
import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from gendistill.data import gan_images as gan_pictures
from gendistill.data.data_config import DataConfig
from gendistill.data.gan_batches import NoData, downsampled, is_enlarging
from gendistill.data.gan_images import prepare_images
from gendistill.data.images import fitted
from gendistill.gan.generator import GeneratorSpec

NOISE = GeneratorSpec("noise", (8,), (3, 12, 16), 3, ("cat", "dog", "fox"))
REPAINTING = GeneratorSpec("image", (3, 12, 16), (3, 12, 16))
ENLARGING = GeneratorSpec("image", (3, 6, 8), (3, 12, 16))


def write(folder, captions, size=(20, 30)):
    """Images of noise, `captions` by name; None writes no caption."""
    folder.mkdir(exist_ok=True)
    for number, (name, caption) in enumerate(captions.items()):
        numbers = np.random.default_rng(number).integers(0, 256, (*size, 3), dtype=np.uint8)
        Image.fromarray(numbers).save(folder / f"{name}.png")
        if caption is not None:
            (folder / f"{name}.txt").write_text(caption)
    return folder


@pytest.fixture
def prepare(tmp_path):
    """prepare(folder, spec): the data, kept in tmp_path/cache."""

    def prepared(folder, spec=NOISE, seed=0, **settings):
        return prepare_images(DataConfig(path=str(folder), cache=str(tmp_path / "cache"), **settings), spec, seed)

    return prepared


def rows(data):
    return data.cache.rows(torch.arange(len(data)))


@pytest.mark.parametrize(("caption", "number"), [("cat", 0), ("fox", 2), ("0", 0), ("2", 2)])
def test_a_class_is_asked_for_by_name_or_number(caption, number):
    assert NOISE.class_of(caption) == number


def test_subfolders_and_labels_that_are_classes_are_found_without_a_setting(prepare, tmp_path):
    for name in ("dog", "fox"):
        write(tmp_path / "set", {})
        write(tmp_path / "set" / name, {"a": "a brown animal", "b": None})
    assert rows(prepare(tmp_path / "set"))["labels"].tolist() == [1, 1, 2, 2]
    lines = [{"file_name": f"{name}/{k}.png", "text": "an animal", "kind": "cat"} for name in ("dog", "fox") for k in "ab"]
    (tmp_path / "set" / "metadata.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert rows(prepare(tmp_path / "set", caption="kind"))["labels"].tolist() == [0] * 4


def test_a_name_counts_before_a_number():
    assert dataclasses.replace(NOISE, classes=("1", "2", "0")).class_of("1") == 0
    assert dataclasses.replace(NOISE, classes=()).class_of("2") == 2


@pytest.mark.parametrize("caption", ["cats", "3", "-1", "1.0", "", "²", "Cat"])
def test_what_is_neither_is_told_with_what_it_takes(caption):
    takes = "the generator expects one of its 3 classes by name, or its number from 0 to 2"
    with pytest.raises(ValueError, match=takes) as no:
        NOISE.class_of(caption)
    assert str(no.value).endswith("the nearest is 'cat'") or caption not in ("cats", "Cat")


def test_labels_and_images_are_those_of_the_source_in_its_order(prepare, tmp_path):
    folder = write(tmp_path / "pets", {"a": "fox", "b": "0", "c": "dog\n"})
    data = prepare(folder)
    held = rows(data)
    assert held["labels"].tolist() == [2, 0, 1]
    assert held["labels"].dtype == torch.int64
    assert held["images"].dtype == torch.uint8
    for name, image in zip("abc", held["images"], strict=True):
        expected = np.asarray(fitted(Image.open(folder / f"{name}.png"), 12, 16))
        np.testing.assert_array_equal(image.permute(1, 2, 0).numpy(), expected)


def test_the_largest_crop_of_the_right_shape_is_taken_from_the_middle(prepare, tmp_path):
    (tmp_path / "wide").mkdir()
    wide = np.zeros((12, 48, 3), dtype=np.uint8)
    wide[:, 16:32] = 255
    Image.fromarray(wide).save(tmp_path / "wide" / "a.png")
    data = prepare(tmp_path / "wide", dataclasses.replace(NOISE, num_classes=0, classes=()))
    assert (rows(data)["images"] == 255).all()


def test_images_that_are_no_class_or_broken_are_left_out_counted_and_listed(prepare, tmp_path, caplog):
    captions = {f"{number:02}": "cat" for number in range(40)} | {"98": "bird", "99": None}
    folder = write(tmp_path / "pets", captions)
    (folder / "97.png").write_bytes(b"no image")
    with caplog.at_level(logging.WARNING):
        data = prepare(folder)
    assert data.summary() == {"rows": 40, "broken": 1, "left_out": 2, "cache": data.cache.key}
    assert "3 of 43 images are left out" in caplog.text
    listed = [json.loads(line) for line in (data.cache.folder / "skipped.jsonl").read_text().splitlines()]
    assert sorted(line["key"] for line in listed) == ["97.png", "98.png", "99.png"]
    assert any("'bird': the generator expects one of its 3 classes" in json.dumps(line) for line in listed)


def test_where_none_is_left_one_sentence_says_so(prepare, tmp_path):
    with pytest.raises(ValueError, match=r"none of 2 images of .* is left; they are listed in"):
        prepare(write(tmp_path / "birds", {"a": "bird", "b": "hen"}))


def test_the_cache_is_used_again_until_something_of_it_changes(prepare, tmp_path, monkeypatch):
    folder = write(tmp_path / "pets", {"a": "fox", "b": "cat"})
    first, made = prepare(folder), []
    make = gan_pictures.FittedImages.make
    monkeypatch.setattr(gan_pictures.FittedImages, "make", lambda *arguments: made.append(1) or make(*arguments))
    again = prepare(folder)
    assert not made
    assert again.cache.key == first.cache.key
    for name, tensor in rows(first).items():
        assert torch.equal(tensor, rows(again)[name])
    keys = {first.cache.key}
    for spec in (
        dataclasses.replace(NOISE, output_shape=(3, 8, 8)),
        dataclasses.replace(NOISE, classes=("fox", "dog", "cat")),
        ENLARGING,
    ):
        keys.add(prepare(folder, spec).cache.key)
    write(folder, {"c": "dog"})
    keys.add(prepare(folder).cache.key)
    assert len(keys) == 5
    assert len(made) == 4


def test_a_generator_of_noise_gets_real_images_and_their_classes(prepare, tmp_path):
    data = prepare(write(tmp_path / "pets", {"a": "fox", "b": "cat"}))
    batch = data.batch(torch.tensor([1, 0, 1]), None)
    assert batch.inputs is None
    assert batch.labels.tolist() == [0, 2, 0]
    torch.testing.assert_close(batch.real, rows(data)["images"][[1, 0, 1]].float() / 127.5 - 1)


def test_without_classes_there_are_no_labels_and_grey_ones_get_grey(prepare, tmp_path):
    folder = write(tmp_path / "pets", {"a": "whatever", "b": None})
    data = prepare(folder, GeneratorSpec("noise", (8,), (1, 12, 16)))
    batch = data.batch(torch.tensor([0, 1]), None)
    assert batch.labels is None
    assert batch.real.shape == (2, 1, 12, 16)
    torch.testing.assert_close(batch.real, (rows(data)["images"].float() / 127.5 - 1).mean(1, keepdim=True))


def test_a_generator_that_generates_anew_gets_images_to_generate_from(prepare, tmp_path):
    data = prepare(write(tmp_path / "pets", {"a": None, "b": None}), REPAINTING)
    batch = data.batch(torch.tensor([0, 1]), None)
    assert (batch.real, batch.labels) == (None, None)
    assert batch.inputs.shape == (2, 3, 12, 16)
    assert -1 <= batch.inputs.min() < batch.inputs.max() <= 1


def test_a_generator_that_enlarges_gets_pairs(prepare, tmp_path):
    assert [is_enlarging(spec) for spec in (ENLARGING, REPAINTING, NOISE)] == [True, False, False]
    data = prepare(write(tmp_path / "pets", {"a": None, "b": None}), ENLARGING)
    batch = data.batch(torch.tensor([0, 1]), None)
    assert batch.real.shape == (2, 3, 12, 16)
    assert batch.inputs.shape == (2, 3, 6, 8)
    assert torch.equal(batch.inputs, downsampled(batch.real, ENLARGING))
    assert -1 <= batch.inputs.min() < batch.inputs.max() <= 1


def test_smaller_keeps_what_is_flat():
    flat = torch.full((1, 3, 12, 16), 0.5)
    torch.testing.assert_close(downsampled(flat, ENLARGING), torch.full((1, 3, 6, 8), 0.5))


def test_one_that_also_changes_the_colours_gets_no_pairs(prepare, tmp_path):
    colouring = GeneratorSpec("image", (1, 6, 8), (3, 12, 16))
    data = prepare(write(tmp_path / "pets", {"a": None}), colouring)
    batch = data.batch(torch.tensor([0]), None)
    assert batch.real is None
    assert batch.inputs.shape == (1, 1, 6, 8)


def test_without_data_there_is_noise_alone_and_images_are_asked_for_where_it_takes_them(tmp_path):
    nothing = DataConfig(cache=str(tmp_path))
    data = prepare_images(nothing, NOISE, 0)
    assert isinstance(data, NoData)
    assert len(data) == 0
    batch = data.batch(data.rows_of_step(0, 0, 4), None)
    assert (batch.inputs, batch.real, batch.labels) == (None, None, None)
    with pytest.raises(ValueError, match=r"data\.path: not set; an image-to-image generator expects input images"):
        prepare_images(nothing, REPAINTING, 0)


def test_prompts_are_refused(tmp_path):
    (tmp_path / "prompts.txt").write_text("cat\n")
    with pytest.raises(ValueError, match=r"data\.prompts .*prompts\.txt: a GAN has no prompts; expects data\.path"):
        prepare_images(DataConfig(prompts=str(tmp_path / "prompts.txt")), NOISE, 0)
    with pytest.raises(ValueError, match=r"prompts\.txt is a prompt file; expects images"):
        prepare_images(DataConfig(path=str(tmp_path / "prompts.txt")), NOISE, 0)
