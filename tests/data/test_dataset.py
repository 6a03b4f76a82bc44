import io

import datasets
import pyarrow
import pyarrow.parquet
import pytest
from datasets import Dataset, DatasetDict, Features, List, Value
from PIL import Image

from gendistill.data.sources.dataset import DatasetImages
from gendistill.data.sources.source import open_source

COLOURS = ("red", "lime", "blue")


def png(colour):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(file, "PNG")
    return file.getvalue()


def table(**columns):
    """A dataset of one image a colour; `columns` hold texts."""
    features = {name: List(Value("string")) if isinstance(of[0], list) else Value("string") for name, of in columns.items()}
    images = [{"bytes": png(colour), "path": None} for colour in COLOURS]
    return Dataset.from_dict(
        {"id": [7, 8, 9], "shown": images, **columns}, Features({"id": Value("int64"), "shown": datasets.Image(), **features})
    )


CAPTIONED = {"caption": ["a red square", "a green square", "a blue square"]}


@pytest.fixture
def parquet(tmp_path):
    file = tmp_path / "squares.parquet"
    table(**CAPTIONED).to_parquet(file)
    return file


def seen(source):
    return [(sample.image.getpixel((0, 0)), sample.caption) for sample in source]


EXPECTED = [((255, 0, 0), "a red square"), ((0, 255, 0), "a green square"), ((0, 0, 255), "a blue square")]


def test_a_parquet_file_gives_its_images_and_captions_again_and_again(parquet):
    source = open_source(parquet)
    assert isinstance(source, DatasetImages)
    assert seen(source) == seen(source) == EXPECTED
    assert [sample.key for sample in source] == ["train/0", "train/1", "train/2"]
    assert source.describe() == f"the split train of the dataset {parquet} (caption: caption)"


def test_a_folder_and_a_pattern_of_parquet_files_are_datasets(tmp_path):
    for number in range(2):
        table(**CAPTIONED).select([number]).to_parquet(tmp_path / f"part-{number}.parquet")
    assert seen(open_source(tmp_path)) == seen(open_source(str(tmp_path / "part-*.parquet"))) == EXPECTED[:2]


def test_a_folder_that_was_saved_to_disk_is_a_dataset(tmp_path):
    table(**CAPTIONED).save_to_disk(tmp_path / "one")
    assert seen(open_source(tmp_path / "one")) == EXPECTED
    splits = {"train": table(**CAPTIONED).select([0]), "test": table(**CAPTIONED).select([1, 2])}
    DatasetDict(splits).save_to_disk(tmp_path / "two")
    assert seen(open_source(tmp_path / "two")) == EXPECTED[:1]
    assert seen(open_source(tmp_path / "two", split="test")) == EXPECTED[1:]
    with pytest.raises(ValueError, match=r"data\.split 'tset': .* has test, train; expects one of them"):
        open_source(tmp_path / "two", split="tset")


def test_parquet_that_datasets_did_not_write_is_read_by_the_names_of_its_columns(tmp_path):
    columns = {"jpg": [png(colour) for colour in COLOURS], "text": CAPTIONED["caption"], "url": ["http://x"] * 3}
    pyarrow.parquet.write_table(pyarrow.table(columns), tmp_path / "plain.parquet")
    assert seen(open_source(tmp_path / "plain.parquet")) == EXPECTED
    structs = {"image": [{"bytes": png(colour), "path": "a.png"} for colour in COLOURS], "text": CAPTIONED["caption"]}
    pyarrow.parquet.write_table(pyarrow.table(structs), tmp_path / "structs.parquet")
    assert seen(open_source(tmp_path / "structs.parquet")) == EXPECTED


def test_columns_that_are_set_are_read(tmp_path):
    table(title=["A", "B", "C"], alt=["a", "", "c"]).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match=r"none of .* has a caption \(found the columns id, shown, title, alt\); expects"):
        open_source(tmp_path / "x.parquet").require_captions()
    assert [caption for _, caption in seen(open_source(tmp_path / "x.parquet", "alt", image_column="shown"))] == ["a", "", "c"]
    with pytest.raises(ValueError, match=r"caption: .* has no 'titel' \(did you mean 'title'\?\)"):
        open_source(tmp_path / "x.parquet", "titel")
    with pytest.raises(ValueError, match=r"data\.image_column 'image': .* has id, shown, title, alt"):
        open_source(tmp_path / "x.parquet", "alt", image_column="image")


def test_of_several_captions_of_a_image_one_is_sampled_by_the_seed(tmp_path):
    texts = [[f"{colour} {number}" for number in range(50)] for colour in COLOURS]
    table(captions=texts).to_parquet(tmp_path / "x.parquet")
    generated = [caption for _, caption in seen(open_source(tmp_path / "x.parquet"))]
    assert all(caption in of for caption, of in zip(generated, texts, strict=True))
    assert generated == [caption for _, caption in seen(open_source(tmp_path / "x.parquet"))]
    assert generated != [caption for _, caption in seen(open_source(tmp_path / "x.parquet", seed=1))]


def test_a_path_in_the_place_of_a_image_is_not_followed(tmp_path):
    (tmp_path / "secret.png").write_bytes(png("red"))
    rows = {"image": [{"bytes": None, "path": str(tmp_path / "secret.png")}, {"bytes": png("blue"), "path": None}]}
    features = Features({"image": datasets.Image()})
    Dataset.from_dict(rows, features).data.table.to_pandas()  # the path is there
    pyarrow.parquet.write_table(Dataset.from_dict(rows, features).data.table, tmp_path / "x.parquet")
    source = open_source(tmp_path / "x.parquet")
    assert seen(source) == [((0, 0, 255), "")]
    assert source.broken_images == 1


def test_the_fingerprint_is_of_the_content_and_of_what_is_read_of_it(tmp_path, parquet):
    (tmp_path / "copy").mkdir()
    copy = tmp_path / "copy" / "squares.parquet"
    copy.write_bytes(parquet.read_bytes())
    same = open_source(parquet).fingerprint()
    assert open_source(copy).fingerprint() == same
    table(caption=["a red circle", *CAPTIONED["caption"][1:]]).to_parquet(copy)
    assert open_source(copy).fingerprint() != same


@pytest.mark.parametrize("name", ["hf://datasets/some/one", "hf://datasets/some/one@main", "hf://models/some/one@" + "0" * 40])
def test_a_dataset_of_the_hub_is_pinned_to_a_commit(name):
    with pytest.raises(ValueError, match="is not pinned; expects hf://datasets/OWNER/NAME@COMMIT"):
        open_source(name)
