import io
import json
import shutil
import struct
import tarfile
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from gendistill.data.sources import archives
from gendistill.data.sources.source import ImageFolder, WebDatasetShards, ZipImages, open_source
from gendistill.metrics.features.feature_extractor import extract, load_extractor


def encoded(image=None, format="PNG", **options):
    file = io.BytesIO()
    (image or Image.new("RGB", (8, 8), "red")).save(file, format, **options)
    return file.getvalue()


def write_zip(path, members, **options):
    with zipfile.ZipFile(path, "w", **options) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


def captions(source):
    return {sample.key: sample.caption for sample in source}


# ---- zips


def test_a_zip_gives_what_its_folder_gives(tmp_path):
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    (folder / "b.png").write_bytes(encoded())
    (folder / "b.txt").write_text("a red square\n", encoding="utf-8")
    (folder / "deep" / "a.JPG").write_bytes(encoded(format="JPEG"))
    line = {"file_name": "a.JPG", "text": "deep\u2028red", "name": "a"}
    (folder / "deep" / "metadata.jsonl").write_text(json.dumps(line, ensure_ascii=False), encoding="utf-8")
    archive = shutil.make_archive(str(tmp_path / "photos"), "zip", folder)
    for caption in (None, "txt"):
        zipped, lying = open_source(archive, caption), ImageFolder(folder, caption)
        assert isinstance(zipped, ZipImages)
        assert captions(zipped) == captions(zipped) == captions(lying)
        assert len(zipped) == 2
    assert captions(open_source(archive, "name")) == {"b.png": "", "deep/a.JPG": "a"}
    with pytest.raises(ValueError, match=r"no 'nam' \(did you mean 'name'\?\)"):
        open_source(archive, "nam")


def test_what_the_finder_puts_into_a_zip_is_left_out(tmp_path):
    members = {"a.png": encoded(), "__MACOSX/._a.png": b"", ".hidden/b.png": encoded(), "notes.md": "notes"}
    assert list(captions(ZipImages(write_zip(tmp_path / "x.zip", members)))) == ["a.png"]


def encrypted(path):
    data = bytearray(write_zip(path, {"a.png": encoded()}).read_bytes())
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = data.index(signature) + offset
        data[at : at + 2] = struct.pack("<H", 1)
    path.write_bytes(data)


def damaged(path):
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    data = bytearray(write_zip(path, {"a.bmp": encoded(Image.fromarray(noise), "BMP")}).read_bytes())
    data[2000] ^= 255  # its checksum no longer fits
    path.write_bytes(data)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda path: write_zip(path, {"../a.png": encoded()}), "holds '../a.png', outside its folder"),
        (lambda path: write_zip(path, {"a.png": encoded(), "C:\\b.png": encoded()}), "outside its folder"),
        (lambda path: write_zip(path, {"/etc/a.png": encoded()}), "outside its folder"),
        (lambda path: write_zip(path, {"notes.txt": "none"}), "holds no image"),
        (lambda path: path.write_bytes(b"not a zip"), "cannot be read"),
        (lambda path: path.write_bytes(write_zip(path, {"a.png": encoded()}).read_bytes()[:60]), "cannot be read"),
        (encrypted, "'a.png' in .* is encrypted"),
        (damaged, "'a.bmp' in .* cannot be read"),
        (lambda path: write_zip(path, {"a.png": encoded(), "metadata.jsonl": "{"}), "line 1 of metadata.jsonl"),
    ],
)
def test_a_zip_that_cannot_be_used_is_one_clear_sentence(tmp_path, make, sentence):
    make(tmp_path / "x.zip")
    with pytest.raises(ValueError, match=sentence) as error:
        list(open_source(tmp_path / "x.zip"))
    assert "\n" not in str(error.value)
    assert [file.name for file in tmp_path.iterdir()] == ["x.zip"]


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "MAX_MEMBER_BYTES", 1 << 20)
    bomb = write_zip(tmp_path / "x.zip", {"a.png": b"\0" * (2 << 20)}, compression=zipfile.ZIP_DEFLATED)
    assert bomb.stat().st_size < 10_000
    with pytest.raises(ValueError, match=r"'a\.png' of 2097152 bytes; it expects at most 1048576"):
        open_source(bomb)


# ---- tars of images that nobody wrote for WebDataset


def test_a_plain_tar_of_nested_images_is_read(tmp_path):
    folder = tmp_path / "set"
    (folder / "cats" / "small").mkdir(parents=True)
    for name in ("b.png", "cats/a.PNG", "cats/small/c.jpeg"):
        (folder / name).write_bytes(encoded())
    for suffix, mode in ((".tar", "w"), (".tar.gz", "w:gz")):
        with tarfile.open(tmp_path / f"set{suffix}", mode) as tar:
            tar.add(folder, arcname=".")
        source = open_source(tmp_path / f"set{suffix}")
        assert isinstance(source, WebDatasetShards)
        assert sorted(sample.key.removeprefix("./") for sample in source) == ["b", "cats/a", "cats/small/c"]
        assert source.broken_images == 0


# ---- threads


def test_decoding_ahead_in_threads_gives_the_same_images_in_the_same_order(tmp_path, caplog):
    generator = np.random.default_rng(0)
    members = {
        f"{k:03}.png": encoded(Image.fromarray(generator.integers(0, 256, (4 + k % 7, 9, 3), dtype=np.uint8)))
        for k in range(60)
    }
    members["030.png"] = members["030.png"][:50]
    source = open_source(write_zip(tmp_path / "x.zip", members))
    one_by_one = [source.decode(entry) for entry in source.entries() if entry.key != "030.png"]
    assert [(sample.key, sample.image.tobytes()) for sample in source] == [(of.key, of.image.tobytes()) for of in one_by_one]
    assert (source.broken_images, len(one_by_one)) == (1, 59)
    assert "skipped 1 images of" in caplog.text


# ---- bad images, from their source to their features


@pytest.fixture(scope="module")
def emoji():
    return load_extractor("emoji")


def test_a_truncated_image_is_left_out_of_the_features_and_counted(tmp_path, emoji):
    for number in range(5):
        (tmp_path / f"{number}.png").write_bytes(encoded(Image.linear_gradient("L").rotate(10 * number)))
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:-200])
    source = open_source(tmp_path)
    assert extract(emoji, (sample.image for sample in source)).shape == (4, emoji.dim)
    assert (source.broken_images, len(source)) == (1, 5)


def test_images_of_mixed_sizes_and_a_single_image_have_features(tmp_path, emoji):
    for number, size in enumerate([(3, 50), (64, 64), (1, 1), (200, 31)]):
        (tmp_path / f"{number}.png").write_bytes(encoded(Image.new("RGB", size, "red")))
    features = extract(emoji, (sample.image for sample in open_source(tmp_path)))
    torch.testing.assert_close(features, features[:1].expand(4, -1), rtol=1e-4, atol=1e-4)  # all of them plainly red
    for name in ("0.png", "1.png", "2.png"):
        (tmp_path / name).unlink()
    assert extract(emoji, (sample.image for sample in open_source(tmp_path))).shape == (1, emoji.dim)
