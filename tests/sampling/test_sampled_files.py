"""Where `sample` writes: a grid, floats or a folder, in place of its own earlier files and of no others."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gendistill.evaluation.report_folder import report_folder
from gendistill.sampling.generate import generate
from gendistill.sampling.image_files import is_own_png


def sample(tiny_folder, out):
    return generate(str(tiny_folder), ["food"], Path(out), steps=1, num=2).files


@pytest.mark.parametrize("out", ["one.png", "Grid.v1.5.PNG", "floats.npy", "images", "student.v1.5", "images/"])
def test_what_was_sampled_is_sampled_again_in_its_place_and_names_may_have_dots(tiny_folder, tmp_path, monkeypatch, out):
    monkeypatch.chdir(tmp_path)
    first = [(file, file.read_bytes()) for file in sample(tiny_folder, out)]
    assert [(file, file.read_bytes()) for file in sample(tiny_folder, out)] == first
    assert len(first) == (1 if Path(out).suffix.lower() in (".png", ".npy") else 2)
    assert [path.name for path in tmp_path.iterdir()] == [Path(out).name]
    if out.endswith(".npy"):
        assert np.load(out).shape == (2, 32, 32, 3)
    else:
        assert is_own_png(first[0][0])


@pytest.mark.parametrize("out", ["one.png", "floats.npy", "images"])
def test_files_of_others_are_refused_and_stay(tiny_folder, tmp_path, out):
    mine = tmp_path / out / "00000.png" if out == "images" else tmp_path / out
    mine.parent.mkdir(exist_ok=True)
    Image.new("RGB", (4, 4)).save(mine, "png")
    before = mine.read_bytes()
    with pytest.raises(ValueError, match=f"^out {tmp_path / out}: .* would be lost"):
        sample(tiny_folder, tmp_path / out)
    assert mine.read_bytes() == before


def test_a_kind_of_file_that_is_not_written_is_named(tiny_folder, tmp_path):
    for name in ("a.jpg", "a.webp", "a.txt", "a.mp4"):
        with pytest.raises(ValueError, match=r"expects a \.png, a \.npy or a folder"):
            sample(tiny_folder, tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_home_folder_is_found_and_a_report_takes_the_place_of_no_file_of_others(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    sample(tiny_folder, "~/one.png")
    assert (tmp_path / "one.png").is_file()
    (tmp_path / "report.html").write_text("<p>mine</p>")
    with pytest.raises(ValueError, match=r"report\.html: exists and would be lost"), report_folder(tmp_path, ("report.html",)):
        pass
    with report_folder(tmp_path / "new", ("report.html", "comparison.csv")) as folder:
        (folder / "report.html").write_text("<footer>Written by gendistill evaluate.</footer>")
        (folder / "comparison.csv").write_text("a,b")
        (folder / "comparison.json").write_text('{"protocol": {}}')
    with report_folder(tmp_path / "new", ("report.html", "comparison.csv")) as folder:
        assert (folder / ".lock").exists()
    assert not (tmp_path / "new" / ".lock").exists()
