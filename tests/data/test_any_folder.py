"""Whatever a folder can hold: captions of every usual layout, links, odd names, odd archives."""

import csv
import io
import json
import os
import tarfile
import unicodedata
import zipfile
from pathlib import Path

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from permissions import permissions_that_hold
from PIL import Image

from gendistill.data.sources.source import open_source
from gendistill.runtime.device import make_folder

NUMBERS = range(3)


def png(number=0):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), (50 * number, 0, 9)).save(file, "PNG")
    return file.getvalue()


IMAGES = {f"{number}.png": png(number) for number in NUMBERS}


def write(folder, files):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def write_tar(path, files, mode="w"):
    with tarfile.open(path, mode) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content if isinstance(content, bytes) else content.encode()))
    return path


def lines(field="text", value="thing {}", file="file_name", name="{}.png"):
    rows = [{file: name.format(k), field: json.loads(json.dumps(value).replace("{}", str(k)))} for k in NUMBERS]
    return "\n".join(map(json.dumps, rows))


def table(**columns):
    file = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    return file.getvalue()


def captions(path, *arguments, **options):
    source = open_source(path, *arguments, **options)
    source.require_captions()
    return [sample.caption for sample in source]


THINGS = [f"thing {number}" for number in NUMBERS]
NEIGHBOURS = {f"{number}.{{}}": f"thing {number}\n" for number in NUMBERS}
FOLDERS = {
    "jsonl with the usual names": {"metadata.jsonl": lines("caption")},
    "jsonl with a prompt": {"metadata.jsonl": lines("prompt")},
    "jsonl with an upper-case name": {"metadata.jsonl": lines("TEXT")},
    "jsonl with a caption of another name": {"metadata.jsonl": lines("blip_caption")},
    "jsonl with one other text": {"metadata.jsonl": lines("meaning")},
    "jsonl with a list": {"metadata.jsonl": lines("text", ["thing {}", ""])},
    "jsonl of Windows": {"deep/metadata.jsonl": "\ufeff" + lines(name=".\\{}.png").replace("\n", "\r\n")},
    "csv": {"metadata.csv": "file_name,text\r\n" + "\r\n".join(f'{k}.png,"thing {k}"' for k in NUMBERS)},
    "csv of names without suffixes": {"metadata.csv": "file_name,text\n" + "\n".join(f"{k},thing {k}" for k in NUMBERS)},
    "csv with upper-case names": {"metadata.csv": "file_name,text\n" + "\n".join(f"{k}.PNG,thing {k}" for k in NUMBERS)},
    "UTF-16 texts": {f"{k}.txt": f"thing {k}".encode("utf-16") for k in NUMBERS},
    "csv with semicolons": {"metadata.csv": "file_name;caption\n" + "\n".join(f"{k}.png;thing {k}" for k in NUMBERS)},
    "parquet": {"metadata.parquet": table(file_name=[f"{k}.png" for k in NUMBERS], caption=THINGS)},
    "kohya's .txt": {name.format("txt"): text for name, text in NEIGHBOURS.items()},
    "kohya's .caption": {name.format("caption"): text for name, text in NEIGHBOURS.items()},
    "an upper-case suffix": {name.format("TXT"): text for name, text in NEIGHBOURS.items()},
    "texts of full names": {name.format("png.txt"): text for name, text in NEIGHBOURS.items()},
    "img2dataset's json and table": {
        **{f"{k}.json": json.dumps({"caption": f"thing {k}", "url": "http://x", "width": 8}) for k in NUMBERS},
        "0.parquet": table(url=["http://x"] * 3, caption=THINGS),
        "0_stats.json": "{}",
    },
}


@pytest.mark.parametrize("layout", FOLDERS)
def test_the_captions_of_a_usual_folder_are_found(layout, tmp_path):
    deep = "deep/" if "deep/metadata.jsonl" in FOLDERS[layout] else ""
    write(tmp_path, {deep + name: data for name, data in IMAGES.items()} | FOLDERS[layout])
    assert captions(tmp_path) == THINGS


def test_the_captions_of_a_shard_are_found(tmp_path):
    for number, suffix in enumerate(["txt", "caption", "text"]):
        files = {f"{k}.{end}": data for k in NUMBERS for end, data in (("png", png(k)), (suffix, f"thing {k}"))}
        assert captions(write_tar(tmp_path / f"{number}.tar", files)) == THINGS
    fields = {"caption": ["thing {}"], "url": "http://x"}
    files = {
        f"{k}.{end}": data
        for k in NUMBERS
        for end, data in (("json", json.dumps(fields).replace("{}", str(k))), ("jpg", png(k)), ("mask.png", png()))
    }
    assert captions(write_tar(tmp_path / "json.tar", files)) == THINGS
    for name, mode in (("plain.tar", "w"), ("plain.tgz", "w:gz")):
        files = {f"./set/{name}": data for name, data in IMAGES.items()} | {"./set/metadata.jsonl": lines()}
        assert captions(write_tar(tmp_path / name, files, mode)) == THINGS


def test_the_captions_of_a_dataset_are_found(tmp_path):
    def dataset(**columns):
        images = {"photo": [{"bytes": png(k), "path": None} for k in NUMBERS]}
        features = {"photo": datasets.Image(), **{name: feature for name, (feature, _) in columns.items()}}
        values = images | {name: values for name, (_, values) in columns.items()}
        return datasets.Dataset.from_dict(values, datasets.Features(features))

    labels = datasets.ClassLabel(names=["cat", "dog"])
    labelled = dataset(label=(labels, [1, 0, -1]), url=(datasets.Value("string"), ["http://x"] * 3))
    labelled.to_parquet(tmp_path / "labels.parquet")
    assert captions(tmp_path / "labels.parquet") == ["dog", "cat", ""]
    assert captions(tmp_path / "labels.parquet", "label_number") == ["1", "0", "-1"]
    labelled.save_to_disk(tmp_path / "saved")
    assert captions(tmp_path / "saved") == ["dog", "cat", ""]
    (arrow,) = (tmp_path / "saved").glob("*.arrow")
    assert captions(arrow) == ["dog", "cat", ""]  # as in the cache of `datasets`
    upper = dataset(TEXT=(datasets.Value("string"), THINGS), alt=(datasets.Value("string"), ["x"] * 3))
    upper.to_parquet(tmp_path / "upper.parquet")
    assert captions(tmp_path / "upper.parquet") == THINGS
    (tmp_path / "category.parquet").write_bytes(
        table(data=[png(k) for k in NUMBERS], text=pyarrow.array(THINGS).dictionary_encode())
    )
    assert captions(tmp_path / "category.parquet") == THINGS


def test_class_numbers_are_no_captions_unless_they_are_named(tmp_path):
    write(tmp_path, IMAGES | {"metadata.jsonl": lines("label", "{}")})
    with pytest.raises(ValueError, match=r"metadata.jsonl with the fields label\)"):
        captions(tmp_path)
    assert captions(tmp_path, "label") == ["0", "1", "2"]
    files = {f"{k}.{end}": data for k in NUMBERS for end, data in (("png", png(k)), ("cls", str(k)))}
    write_tar(tmp_path / "x.tar", files)
    with pytest.raises(ValueError, match=r"files of samples that end with .cls, .png, and the fields cls\)"):
        captions(tmp_path / "x.tar")
    assert captions(tmp_path / "x.tar", "cls") == ["0", "1", "2"]


def test_another_seed_is_another_choice_from_lists_and_another_fingerprint(tmp_path):
    write(tmp_path, IMAGES | {"metadata.jsonl": lines("captions", [f"{{}} {k}" for k in range(50)])})
    assert captions(tmp_path) == captions(tmp_path) != captions(tmp_path, seed=1)
    assert open_source(tmp_path).fingerprint() != open_source(tmp_path, seed=1).fingerprint()
    write(tmp_path, {"metadata.jsonl": lines()})
    assert open_source(tmp_path).fingerprint() == open_source(tmp_path, seed=1).fingerprint()


def test_without_any_caption_the_error_names_what_was_found_and_its_advice_works(tmp_path):
    files = {f"10_cat/{name}": data for name, data in IMAGES.items()} | {"dogs/a.png": png(), "dogs/a.txt": " "}
    write(
        tmp_path, files | {"metadata.jsonl": lines("first", name="10_cat/{}.png") + '\n{"file_name": "dogs/a.png", "b": "c"}'}
    )
    with pytest.raises(ValueError, match=r"none of 4 images in .* has a caption") as error:
        captions(tmp_path)
    found = r"metadata.jsonl with the fields b, first; files of the images' names that end with .txt; the subfolders cat, dogs"
    assert found in str(error.value)
    assert captions(tmp_path, "first") == [*THINGS, ""]
    assert captions(tmp_path, "folder") == ["cat"] * 3 + ["dogs"]
    assert captions(tmp_path, "none") == [""] * 4


# ---- what is read


def keys(path, **options):
    source = open_source(path, **options)
    found = [sample.key for sample in source]
    assert source.broken_images == 0
    return found


def test_links_are_followed_without_loops_and_dead_ones_are_broken_images(tmp_path, caplog):
    real = write(tmp_path / "real", {"a.png": png(), "deep/b.png": png()})
    folder = write(tmp_path / "set", IMAGES)
    (folder / "linked.png").symlink_to(real / "a.png")
    (folder / "more").symlink_to(real)
    (real / "deep" / "up").symlink_to(real)
    (folder / "self").symlink_to(folder)
    (tmp_path / "link").symlink_to(folder)
    os.mkfifo(folder / "pipe.png")
    write(folder, {".hidden/x.png": b"", "__MACOSX/._a.png": b"", "Thumbs.db": b"", ".ipynb_checkpoints/0.png": b""})
    for path in (folder, tmp_path / "link"):
        assert keys(path) == ["0.png", "1.png", "2.png", "linked.png", "more/a.png", "more/deep/b.png"]
    (folder / "dead.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "dead.txt").symlink_to(tmp_path / "nowhere.txt")
    source = open_source(folder)
    source.fingerprint()
    assert len(list(source)) == 6
    assert source.broken_images == 1
    assert "dead.png: image: cannot be decoded (No such file or directory)" in caplog.text
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"gone' is a link to '.*nowhere', which does not exist"):
        open_source(tmp_path / "gone")


def test_names_with_marks_of_patterns_are_names(tmp_path):
    for folder in ("set [v2]", "a*b?", "{1,2}", "[!x]"):
        place = write(tmp_path / folder, {"x.parquet": table(image=[png()], text=["thing"])})
        for path in (place, place / "x.parquet", f"{place}/*.parquet"):
            assert captions(path) == ["thing"]
        (place / "x.parquet").unlink()
        write_tar(place / "x[1].tar", {"a.png": png(), "a.txt": "thing"})
        for path in (place, place / "x[1].tar", f"{place}/*.tar", f"{place}/{{x,x}}*.tar"):
            assert captions(path) == ["thing"]
        (place / "x[1].tar").unlink()
        write(place, {"b[1].c.png": png(), "b[1].c.txt": "thing"})
        for path in (place, f"{place}/*.png"):
            assert captions(path) == ["thing"]


def test_names_that_are_not_utf8_are_read_and_printed(tmp_path):
    folder = os.fsencode(tmp_path) + b"/f\xff"
    os.mkdir(folder)
    for name, data in {b"\xe9.png": png(), b"\xe9.txt": b"thing", b"\xfe.png": b"broken"}.items():
        with open(folder + b"/" + name, "wb") as file:
            file.write(data)
    source = open_source(os.fsdecode(folder))
    assert [(sample.key, sample.caption) for sample in source] == [("\\xe9.png", "thing")]
    assert "f\\xff" in source.describe().encode("utf-8").decode()
    assert source.fingerprint()
    write_tar(tmp_path / "x.tar", {os.fsdecode(b"\xe9.png"): png()})
    assert keys(tmp_path / "x.tar") == ["\\xe9"]
    with pytest.raises(ValueError, match=r"out '.*\\udcff': the name is not UTF-8; expects a name of UTF-8 characters"):
        make_folder(Path(os.fsdecode(folder)))
    decomposed = unicodedata.normalize("NFD", "é.png")
    write(tmp_path / "mac", {decomposed: png(), "metadata.jsonl": json.dumps({"file_name": "é.png", "text": "thing"})})
    assert captions(tmp_path / "mac") == ["thing"]


def test_lists_and_patterns_of_images_are_read(tmp_path):
    write(tmp_path, {f"deep/{name}": data for name, data in IMAGES.items()} | {"deep/0.txt": "zero", "deep/a.tif": b""})
    write(tmp_path, {"list.jsonl": lines(file="image", name="deep/{}.png")})
    assert captions(tmp_path / "list.jsonl") == THINGS
    with (tmp_path / "list.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "caption"], [tmp_path / "deep" / "1.png", "one"]])
    assert captions(tmp_path / "list.csv") == ["one"]
    assert captions(f"{tmp_path}/deep/*.png") == ["zero", "", ""]
    assert len(keys(f"{tmp_path}/deep/{{0..1}}.png")) == 2
    assert len(keys(tmp_path / "deep" / "0.png")) == 1
    for content, error in (("", "names no image"), ('{"image": "http://x/y.png"}', "names addresses, which are not fetched")):
        write(tmp_path, {"other.jsonl": content})
        with pytest.raises(ValueError, match=f"other.jsonl' {error}; expects a `file_name` of a local image"):
            open_source(tmp_path / "other.jsonl")
    before = open_source(tmp_path / "list.jsonl").fingerprint()
    write(tmp_path, {"list.jsonl": lines(file="image", name="deep/{}.png", value="other {}")})
    assert open_source(tmp_path / "list.jsonl").fingerprint() != before


def test_plain_tars_are_read_whatever_their_names_and_compression(tmp_path, caplog):
    names = [f"seed{k // 6}_cfg7.{k % 6}.png" for k in range(12)]
    assert len(keys(write_tar(tmp_path / "dots.tar", dict.fromkeys(names, png())))) == 12
    many = {f"frame.{k:03}.png": png() for k in range(100)} | {"frame.007.txt": "seven"}
    assert len(keys(write_tar(tmp_path / "many.tar", dict(sorted(many.items()))))) == 100
    assert captions(tmp_path / "many.tar")[7] == "seven"
    folders = {"set.v2/cats/a.png": png(), "set.v2/dogs/a.png": png(), "README": "", "set.v2/._a.png": b"", "notes.md": ""}
    assert captions(write_tar(tmp_path / "folders.tar", folders), "folder") == ["cats", "dogs"]
    for ending, mode in (("tar.bz2", "w:bz2"), ("tar.xz", "w:xz"), ("tgz", "w:gz"), ("tar.gz", "w"), ("tar", "w:gz")):
        assert keys(write_tar(tmp_path / f"x.{ending}", {"a.png": png()}, mode)) == ["a"]
    views = {"a.left.png": png(), "a.right.png": png(), "a.txt": "thing", "b.png": png()}
    assert captions(write_tar(tmp_path / "views.tar", views)) == ["thing", "thing", ""]
    parts = {"a.png": png(), "a.mask.png": png(), "b.png": png()}
    assert keys(write_tar(tmp_path / "parts.tar", parts)) == ["a", "b"]
    assert "images such as a.mask.png belong to the sample of a.png and are not read" in caplog.text
    (tmp_path / "deep" / "er").mkdir(parents=True)
    write_tar(tmp_path / "deep" / "er" / "0.tar", {"a.png": png()})
    (tmp_path / "deep" / "0.parquet").write_bytes(table(url=["http://x"]))
    assert keys(tmp_path / "deep") == ["a"]


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        ({}, r"holds no image, no shard and no parquet; expects PNG"),
        ({"deep/er/a.md": b"", "deep/b.heic": b""}, r"\(it holds files: 1 .md, 1 .heic\)|1 .heic, 1 .md"),
        ({"x.zip": b""}, r"it holds files: 1 \.zip\); .* or the name of a single \.zip"),
        (
            {"a.png": png(), "b.parquet": table(image=[b""])},
            r"holds both images and dataset; expects one of them: .*/\*\*/\*\.pa",
        ),
        (
            {"a.png": png(), "metadata.csv": b"name,text\nx,y"},
            r"line 2 of metadata.csv .* `file_name` \(got the fields name, text",
        ),
        ({"a.png": png(), "metadata.csv": b"\xff\xfe"}, "expects a UTF-8 text file"),
        ({"a.parquet": b""}, r"cannot be opened as a dataset \(.*0 bytes"),
        ({"a.png": png(), "metadata.parquet": b"x"}, "metadata.parquet in .* cannot be read .* expects a parquet file"),
    ],
)
def test_what_cannot_be_read_is_one_true_sentence(files, sentence, tmp_path):
    with pytest.raises(ValueError, match=sentence) as error:
        open_source(write(tmp_path, files))
    assert "\n" not in str(error.value)


def test_a_zip_holds_what_a_folder_holds(tmp_path, caplog):
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as archive:
        for name, data in (IMAGES | {"metadata.csv": "file_name,caption\n0.png,zero", "in.zip": b"", "é.tif": b""}).items():
            archive.writestr(name, data)
    assert captions(tmp_path / "x.zip") == ["zero", "", ""]
    assert "1 .tif of" in caplog.text


def test_images_of_a_dataset_may_be_relative_paths_and_reasons_are_true(tmp_path, monkeypatch, caplog):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, {"p/0.png": png(), "set [v2]/1.png": png()})
    paths = ["p/0.png", "1.png", "/etc/x.png", "../x.png", None, "p/none.png"]
    rows = [path and {"bytes": None, "path": path} for path in paths]
    kinds = datasets.Features({"image": datasets.Image()})
    pyarrow.parquet.write_table(datasets.Dataset.from_dict({"image": rows}, kinds).data.table, "set [v2]/x.parquet")
    (tmp_path / "set [v2]" / "1.png").rename(tmp_path / "1.png")
    source = open_source("set [v2]/x.parquet")
    assert len(list(source)) == 2
    assert source.broken_images == 4
    assert "the row has only the path '/etc/x.png'; expects the bytes of the image" in caplog.text


def test_a_folder_that_cannot_be_read_is_reported(tmp_path, caplog):
    write(tmp_path, IMAGES | {"locked/a.png": png(), "0.txt": "zero", "1.txt": "one"})
    for name in ("locked", "1.png", "1.txt"):
        (tmp_path / name).chmod(0)
    with permissions_that_hold():
        assert [(sample.key, sample.caption) for sample in open_source(tmp_path)] == [("0.png", "zero"), ("2.png", "")]
        with pytest.raises(ValueError, match="locked' cannot be read \\(Permission denied\\)"):
            open_source(tmp_path / "locked")
    (tmp_path / "locked").chmod(0o700)
    assert "locked cannot be read (Permission denied); its images are left out" in caplog.text
    assert "1.png: image: cannot be decoded (Permission denied)" in caplog.text
