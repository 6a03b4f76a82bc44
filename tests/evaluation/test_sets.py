"""Sets of images from the command line, and the errors of invalid ones."""

import json
import re
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from fresh_process import gendistill, ran
from PIL import Image

from gendistill.evaluation.evaluation_config import EvaluationConfig
from gendistill.evaluation.sets import evaluate_images, is_image_set, save_statistics
from gendistill.metrics.distances.frechet import frechet_distance
from gendistill.metrics.features.feature_extractor import load_extractor
from gendistill.metrics.features.gaussian import GaussianStatistics

ROOT = Path(__file__).parents[2]
HELD_OUT = ROOT / "assets" / "emoji" / "heldout-000.tar.gz"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two halves of the held-out emoji, as folders of .png and .txt."""
    place = tmp_path_factory.mktemp("sets")
    with tarfile.open(HELD_OUT) as shard:
        for member in shard.getmembers():
            if not member.name.endswith(".json"):
                half = place / ("google" if member.name.startswith("google") else "twitter")
                half.mkdir(exist_ok=True)
                (half / member.name).write_bytes(shard.extractfile(member).read())
    return place


def scores(images, reference, cache, **options):
    config = EvaluationConfig(str(reference), extractor="emoji", cache=str(cache), **options)
    return evaluate_images(str(images), config).evaluation.scores


def test_two_folders_are_evaluated_from_the_command_line(folders, tmp_path):
    options = ["--reference", folders / "google", "--extractor", "emoji", "--clip", ROOT / "assets" / "tiny-clip"]
    command = ["evaluate", folders / "twitter", *options, "--cache", tmp_path / "cache", "--out", tmp_path, "--json"]
    done = ran(*command)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    expected = {"fd-emoji", "kd-emoji", "precision", "recall", "density", "coverage", "vendi", "clip_score", "clip_r"}
    assert result["scores"].keys() == result["intervals"].keys() == expected
    assert result["scores"]["clip_score"] > 45
    assert result["protocol"]["reference_count"] == 377
    assert "377 images are few for 128 features" in done.stderr
    assert json.loads((tmp_path / "evaluation.json").read_text()) == result


def test_the_same_images_give_the_same_scores_however_they_are_packed(folders, tmp_path):
    with zipfile.ZipFile(tmp_path / "google.zip", "w") as packed, tarfile.open(tmp_path / "google.tar", "w") as tar:
        for file in sorted((folders / "google").iterdir()):
            packed.write(file, file.name)
            tar.add(file, file.name)
    options = {"metrics": ["fid", "kid", "prdc"], "intervals": False}
    plain = scores(folders / "twitter", folders / "google", tmp_path / "cache", **options)
    for name in ("google.zip", "google.tar"):
        assert scores(folders / "twitter", tmp_path / name, tmp_path / "cache", **options) == pytest.approx(plain, rel=1e-6)


def test_saved_statistics_give_the_distance_that_the_images_give(folders, tmp_path):
    command = ["statistics", folders / "google", "--extractor", "emoji", "--out", tmp_path / "google.npz"]
    done = gendistill([*command, "--cache", tmp_path / "cache"], tmp_path / "out")
    assert done.wait() == 0, done.text
    plain = scores(folders / "twitter", folders / "google", tmp_path, metrics=["fid"])
    assert scores(folders / "twitter", tmp_path / "google.npz", tmp_path) == pytest.approx(plain)
    assert scores(tmp_path / "google.npz", folders / "google", tmp_path)["fd-emoji"] < 1e-6


def test_a_set_has_zero_distance_from_itself_and_features_are_extracted_once(folders, tmp_path, monkeypatch):
    first = scores(folders / "google", folders / "google", tmp_path, intervals=False)
    assert first["fd-emoji"] < 1e-6
    assert first["recall"] == first["coverage"] == first["precision"] == 1
    monkeypatch.setattr("gendistill.evaluation.feature_cache.extract", None)
    assert scores(folders / "google", folders / "google", tmp_path, intervals=False) == first


def test_the_distance_alone_equals_the_distance_among_all_scores_with_features_on_disk(folders, tmp_path):
    alone = scores(folders / "twitter", folders / "google", tmp_path, metrics=["fid"], intervals=False)
    among = scores(folders / "twitter", folders / "google", tmp_path, metrics=["fid", "vendi"], intervals=False)
    assert alone["fd-emoji"] == pytest.approx(among["fd-emoji"], rel=1e-9)


def test_few_and_identical_images_have_finite_scores_and_the_rest_is_named(tmp_path):
    for name, numbers in {"five": range(5), "same": [0] * 8, "eight": range(8)}.items():
        (tmp_path / name).mkdir()
        for place, number in enumerate(numbers):
            noise = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(noise).save(tmp_path / name / f"{place}.png")
    for images, reference in (("same", "same"), ("eight", "same"), ("same", "eight"), ("five", "eight"), ("eight", "five")):
        config = EvaluationConfig(str(tmp_path / reference), extractor="emoji", cache=str(tmp_path / "cache"))
        result = evaluate_images(str(tmp_path / images), config)
        numbers = [*result.evaluation.scores.values(), *sum(result.evaluation.intervals.values(), ())]
        assert np.isfinite(numbers).all(), (images, reference)
        got = "5 images of the reference" if reference == "five" else "5 images"
        left_out = f"not measured: precision: got {got}, expects at least 6."
        assert (left_out in result.warnings) == ("five" in (images, reference))
    scores_of_copies = scores(tmp_path / "same", tmp_path / "same", tmp_path / "cache")
    assert scores_of_copies["fd-emoji"] == 0
    with pytest.raises(ValueError, match="precision: got 5 images of the reference, expects at least 6"):
        scores(tmp_path / "eight", tmp_path / "five", tmp_path / "cache", metrics=["precision"])


def image(mode, size=(40, 32)):
    ramp = np.linspace(0, 255, size[0] * size[1]).reshape(size[1], size[0])
    if mode == "I;16":
        return Image.fromarray((ramp * 257).astype(np.uint16))
    return Image.fromarray(np.stack([ramp, ramp.T.reshape(ramp.shape), 255 - ramp], axis=2).astype(np.uint8)).convert(mode)


KINDS = {
    "cmyk.jpg": "CMYK",
    "deep.png": "I;16",
    "clear.png": "RGBA",
    "grey.png": "L",
    "palette.png": "P",
    "grey-clear.png": "LA",
}


def test_images_of_every_mode_and_size_are_converted_and_counted(folders, tmp_path):
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    for number, (name, mode) in enumerate(KINDS.items()):
        image(mode, (40 + number, 32)).save(mixed / name)
    frames = [image("RGB"), image("RGB").rotate(90)]
    frames[0].save(mixed / "moving.gif", save_all=True, append_images=frames[1:])
    good = (folders / "google").glob("*.png")
    (mixed / "cut.png").write_bytes(next(good).read_bytes()[:900])
    command = ["evaluate", mixed, "--reference", folders / "google", "--extractor", "emoji", "--metrics", "fid"]
    done = gendistill([*command, "--cache", tmp_path / "cache"], tmp_path / "out")
    assert done.wait() == 0, done.text
    assert "mixed: 1 images could not be decoded and are left out." in done.text
    assert "mixed: 7 images are too few for 128 features" in done.text


@pytest.fixture(scope="module")
def odd(folders, tmp_path_factory):
    """Invalid sets in one folder, and `google`, which is valid."""
    place = tmp_path_factory.mktemp("odd")
    (place / "google").symlink_to(folders / "google")
    for name in ("one", "broken", "captionless"):
        (place / name).mkdir()
    image("RGB").save(place / "one" / "a.png")
    for number in range(3):
        image("RGB").save(place / "captionless" / f"{number}.png")
    for name in "ab":
        (place / "broken" / f"{name}.png").write_bytes(b"\x89PNG\r\n\x1a\n nothing")
    GaussianStatistics(np.zeros(7), np.eye(7), 100).save(place / "seven.npz")
    (place / "text.npz").write_text("no statistics")
    np.savez(place / "pickled.npz", mu=np.array([{}], dtype=object), sigma=np.eye(1))
    return place


@pytest.mark.parametrize(
    ("images", "reference", "options", "sentence"),
    [
        ("one", "google", "", "images: 1 images in .*/one .* gives 1 .*expects at least 2"),
        ("broken", "google", "", r"gives 0 \(2 cannot be decoded\); expects at least 2"),
        ("google", "seven.npz", "", "got statistics of 7 features, expects 128"),
        ("google", "text.npz", "", "is no .npz"),
        ("google", "pickled.npz", "", "got arrays that are pickled"),
        ("google", "nowhere.npz", "", "there is no such file"),
        ("google", "seven.npz", "--metrics kid", "expects 128"),
        ("google", "google", "--extractor inception", "cannot be downloaded .* expects a local path"),
        ("google", "google", "--extractor incepton", "did you mean 'inception'"),
        ("google", "google", "--metrics fud", "metrics: got 'fud', expects fd"),
        ("google", "google", "--resize clean", "resize: got 'clean' .* expects none"),
        ("google", "google", "--resize cleen --extractor torchvision:resnet18:x.pth", "resize|weights"),
        ("captionless", "google", f"--metrics clip_score --clip {ROOT}/assets/tiny-clip", "has images without a caption"),
        ("google", "google", "--metrics psnr", "psnr: got no pairs of images of a student and its teacher"),
        ("google", "p.txt", "", "p.txt' does not exist|is a prompt file"),
    ],
)
def test_a_mistake_is_one_sentence_and_exit_code_2(images, reference, options, sentence, odd, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    command = ["evaluate", odd / images, "--reference", odd / reference, "--extractor", "emoji", *options.split()]
    nowhere = {"TORCH_HOME": str(tmp_path / "torch"), "https_proxy": "http://127.0.0.1:9"}
    done = gendistill([*command, "--cache", tmp_path / "cache"], tmp_path / "out", environment=nowhere)
    assert done.wait() == 2, done.text
    assert "Traceback" not in done.text
    assert done.text.count("error: ") == 1
    assert re.search(sentence, done.text.split("error: ")[1])


def test_models_and_sets_of_images_are_distinguished(folders, tiny_folder, tmp_path):
    sets = [folders / "google", "x.zip", "assets/emoji/train-*.tar.gz", "real.npz", "hf://datasets/a/b@c", "rows.parquet"]
    assert all(is_image_set(str(path)) for path in sets)
    assert not any(is_image_set(str(path)) for path in (tiny_folder, "owner/model", "model.safetensors"))


def test_statistics_are_read_by_other_libraries(folders, tmp_path):
    from pytorch_fid.fid_score import calculate_frechet_distance

    for half in ("google", "twitter"):
        save_statistics(str(folders / half), tmp_path / f"{half}.npz", extractor="emoji", cache=str(tmp_path))
    files = [tmp_path / f"{half}.npz" for half in ("google", "twitter")]
    statistics = [GaussianStatistics.load(file, load_extractor("emoji").dim) for file in files]
    expected = calculate_frechet_distance(*(np.load(file)[name] for file in files for name in ("mu", "sigma")))
    assert frechet_distance(*statistics) == pytest.approx(expected, rel=1e-5)
