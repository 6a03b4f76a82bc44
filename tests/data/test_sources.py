import io
import json
import logging
import os
import shutil
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image

from gendistill.data.sources.captions import CaptionChoice
from gendistill.data.sources.source import ImageFolder, Prompts, WebDatasetShards, open_source

EMOJI = Path(__file__).parents[2] / "assets" / "emoji"
LEVELS = {"name": 0.2, "subcategory": 0.6, "category": 0.2}


def png(colour="red", size=(8, 8)):
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, "PNG")
    return file.getvalue()


def write_tar(path, members):
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    (folder / "b.png").write_bytes(png("blue"))
    (folder / "b.txt").write_text("a blue square\n", encoding="utf-8")
    (folder / "deep" / "a.JPG").write_bytes(png("red"))
    (folder / ".hidden.png").write_bytes(png())
    return folder


def captions(source):
    return {sample.key: sample.caption for sample in source}


# ---- folders


def test_a_folder_is_walked_in_the_order_of_its_paths_again_and_again(photos):
    source = ImageFolder(photos)
    keys = [sample.key for sample in source]
    assert keys == ["b.png", "deep/a.JPG"]
    assert [sample.key for sample in source] == keys
    assert len(source) == 2


def test_a_caption_is_the_text_file_beside_the_image_or_empty(photos):
    source = ImageFolder(photos)
    assert captions(source) == {"b.png": "a blue square", "deep/a.JPG": ""}


def test_metadata_gives_the_caption_field_that_is_asked_for(photos):
    rows = [{"file_name": "b.png", "text": "from metadata", "long": "a longer one"}]
    (photos / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n\n", encoding="utf-8")
    (photos / "deep" / "metadata.jsonl").write_text('{"file_name": "a.JPG", "text": "deep\u2028down"}', "utf-8")
    assert captions(ImageFolder(photos)) == {"b.png": "from metadata", "deep/a.JPG": "deep\u2028down"}
    assert captions(ImageFolder(photos, caption="long"))["b.png"] == "a longer one"
    assert captions(ImageFolder(photos, caption="txt"))["b.png"] == "a blue square"


def test_a_caption_field_that_is_not_there_is_named_with_the_nearest(photos):
    (photos / "metadata.jsonl").write_text('{"file_name": "b.png", "title": "x"}', encoding="utf-8")
    with pytest.raises(ValueError, match=r"caption: .* has no 'titel' \(did you mean 'title'\?\)"):
        ImageFolder(photos, caption="titel")


def test_a_line_of_metadata_that_is_no_json_is_named(photos):
    (photos / "metadata.jsonl").write_text('{"file_name": "b.png"}\n{broken\n', encoding="utf-8")
    with pytest.raises(ValueError, match="line 2 of"):
        ImageFolder(photos)


def test_a_broken_image_is_skipped_counted_and_logged(photos, caplog):
    (photos / "c.png").write_bytes(png()[:50])
    source = ImageFolder(photos)
    with caplog.at_level(logging.WARNING):
        assert "c.png" not in captions(source)
    assert source.broken_images == 1
    assert "skipped 1 images of" in caplog.text
    assert "such as c.png: image: cannot be decoded" in caplog.text
    list(source)
    assert source.broken_images == 1


def test_a_folder_has_the_same_fingerprint_elsewhere_and_another_when_it_changes(photos, tmp_path):
    before = ImageFolder(photos).fingerprint()
    copy = tmp_path / "copy"
    shutil.copytree(photos, copy)  # keeps modification times
    assert ImageFolder(copy).fingerprint() == before
    (copy / "b.txt").write_text("a blue squirrel", encoding="utf-8")
    assert ImageFolder(copy).fingerprint() != before
    (photos / "metadata.jsonl").write_text('{"file_name": "b.png", "text": "new"}', encoding="utf-8")
    assert ImageFolder(photos).fingerprint() != before


def test_the_fingerprint_tells_how_captions_are_sampled():
    shards = str(EMOJI / "heldout-*.tar.gz")
    prints = {
        WebDatasetShards(shards, caption, seed).fingerprint()
        for caption, seed in [(None, 0), ("name", 0), (LEVELS, 0), (LEVELS, 1)]
    }
    assert len(prints) == 4


# ---- shards


def test_the_emoji_come_with_their_images_and_names():
    source = open_source(EMOJI / "heldout-*.tar.gz")
    samples = list(source)
    assert len(samples) == 754
    assert {sample.image.size for sample in samples} == {(32, 32)}
    assert {sample.image.mode for sample in samples} == {"RGB"}
    assert source.broken_images == 0
    assert all(sample.caption for sample in samples)
    assert captions(open_source(EMOJI / "heldout-*.tar.gz", "name")) == {s.key: s.caption for s in samples}


def test_caption_levels_are_sampled_by_weight_and_stay_the_same():
    path = EMOJI / "heldout-*.tar.gz"
    texts = {level: captions(open_source(path, level)) for level in LEVELS}
    generated = captions(open_source(path, LEVELS, seed=3))
    assert captions(open_source(path, dict(reversed(LEVELS.items())), seed=3)) == generated
    assert captions(open_source(path, LEVELS, seed=4)) != generated
    levels = Counter(level for key, caption in generated.items() for level in LEVELS if texts[level][key] == caption)
    for level, weight in LEVELS.items():
        assert levels[level] / len(generated) == pytest.approx(weight, abs=0.06)


def test_shards_are_found_by_folder_glob_braces_and_name(tmp_path):
    for k in range(3):
        write_tar(tmp_path / f"part-{k:03}.tar", {f"{k}.png": png(), f"{k}.txt": b"a square"})
    for path in [tmp_path, tmp_path / "part-*.tar", tmp_path / "part-{000..002}.tar"]:
        assert [sample.key for sample in open_source(path)] == ["0", "1", "2"]
    assert [sample.key for sample in open_source(tmp_path / "part-001.tar")] == ["1"]


def test_a_sample_without_a_image_is_skipped_and_one_without_a_caption_has_an_empty_one(tmp_path):
    members = {"a.txt": b"no image", "b.jpeg": png(), "c.png": png(), "c.txt": b"\xff\xfe"}
    source = WebDatasetShards(write_tar(tmp_path / "x.tar", members))
    assert captions(source) == {"b": "", "c": ""}
    assert source.broken_images == 1


def test_nothing_in_a_tar_is_written_to_disk(tmp_path):
    write_tar(tmp_path / "x.tar", {"deep/a.png": png(), "b.pkl": b"a pickle", "c.png": png()})
    assert [sample.key for sample in WebDatasetShards(tmp_path / "x.tar")] == ["deep/a", "c"]
    assert os.listdir(tmp_path) == ["x.tar"]


def write_zip(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(("name", "write"), [("x.tar", write_tar), ("x.zip", write_zip)])
def test_an_archive_has_the_same_fingerprint_elsewhere_and_another_when_it_changes(tmp_path, name, write):
    (tmp_path / "copy").mkdir()
    one = write(tmp_path / name, {"a.png": png("red")})
    two = shutil.copyfile(one, tmp_path / "copy" / name)
    assert open_source(one).fingerprint() == open_source(two).fingerprint()
    write(two, {"a.png": png("blue")})
    assert open_source(one).fingerprint() != open_source(two).fingerprint()


@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
def test_a_shard_that_was_cut_short_is_named(tmp_path, name):
    noise = {f"{k}.bmp": os.urandom(50_000) for k in range(3)}
    shard = write_tar(tmp_path / name, noise)
    shard.write_bytes(shard.read_bytes()[:120_000])
    with pytest.raises(ValueError, match=rf"data: the shard .*{name} cannot be read"):
        list(WebDatasetShards(shard))


def test_a_json_field_that_is_not_there_is_named_with_the_nearest():
    with pytest.raises(ValueError, match=r"has no 'categori' \(did you mean 'category'\?\)"):
        open_source(EMOJI / "heldout-*.tar.gz", "categori")


@pytest.mark.parametrize("caption", [{}, {"name": -1}, {"name": 0}, {"name": "much"}, {"name": float("nan")}, []])
def test_weights_that_cannot_be_sampled_by_are_refused(caption):
    with pytest.raises(ValueError, match="caption: got"):
        open_source(EMOJI / "heldout-*.tar.gz", caption)


def test_an_empty_field_is_left_out_of_the_sample():
    choice = CaptionChoice.from_option({"a": 1, "b": 1, "c": 0}, "txt", seed=0)
    assert {choice.sample(str(key), {"a": "", "b": "here", "c": "never"}) for key in range(20)} == {"here"}
    assert choice.sample("k", {"c": "never"}) == ""


# ---- prompts, and what a path is


def test_prompts_are_lines_without_the_blank_ones(tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffa cat\r\n\r\n  \n une été \n".encode())
    source = open_source(file)
    assert list(source) == list(source) == ["a cat", "une été"]
    assert source.fingerprint() == Prompts(["a cat", "une été"]).fingerprint() != Prompts(["une été"]).fingerprint()
    assert source.describe() == f"2 prompts of {file}"


def test_what_a_path_is_decides_the_source(photos):
    assert isinstance(open_source(photos), ImageFolder)
    assert isinstance(open_source(EMOJI), WebDatasetShards)
    assert isinstance(open_source(photos / "b.txt"), Prompts)
    assert open_source(photos).describe() == f"2 images in {photos} (caption: txt)"


@pytest.mark.parametrize(
    ("path", "sentence"),
    [
        ("absent", "does not exist"),
        ("pipe:touch owned", "does not exist"),
        ("none-*.tar", "matches no file"),
        ("part-{0..1.tar", "has an unmatched brace"),
        ("empty", "holds no image, no shard and no parquet"),
        ("both", "holds both shards and images"),
        ("notes.md", "is not a shard"),
        ("blank.txt", "holds no prompt"),
        ("latin.txt", "cannot be read"),
        ("hollow.tar", "holds no sample"),
        ("fake.tar", "cannot be read"),
    ],
)
def test_what_cannot_be_trained_on_is_one_clear_sentence(tmp_path, monkeypatch, path, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "both").mkdir()
    write_tar(tmp_path / "both" / "x.tar", {"a.png": png()})
    (tmp_path / "both" / "a.png").write_bytes(png())
    (tmp_path / "notes.md").write_text("notes", encoding="utf-8")
    (tmp_path / "blank.txt").write_text("\n \n", encoding="utf-8")
    (tmp_path / "latin.txt").write_bytes("été".encode("latin-1"))
    write_tar(tmp_path / "hollow.tar", {})
    (tmp_path / "fake.tar").write_bytes(b"not a tar")
    with pytest.raises(ValueError, match=sentence) as error:
        open_source(path)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "owned").exists()
