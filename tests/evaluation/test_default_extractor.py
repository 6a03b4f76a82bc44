"""The emoji network is for the embedded models and images; others are validated by a network that is on the machine."""

import shutil
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from gendistill.assets import ASSETS
from gendistill.evaluation.default_extractor import are_embedded_images, chosen_extractor, is_embedded, prompts_of
from gendistill.gan.gan_folder import open_gan
from gendistill.metrics.distances.frechet import frechet_distance
from gendistill.metrics.features.feature_extractor import extract, load_extractor
from gendistill.metrics.features.gaussian import gaussian_statistics
from gendistill.samplers import FewStepSampler

SIZE = (32, 32)


@pytest.fixture
def empty_machine(tmp_path, monkeypatch):
    """A machine on which no network was downloaded; its folder."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


def test_an_embedded_model_is_known_by_its_prompts_wherever_it_lies(tiny_folder, gans, tmp_path):
    shutil.copytree(ASSETS / "tiny-sd", tmp_path / "mine")
    copy = FewStepSampler.from_pretrained(tmp_path / "mine", dtype=torch.bfloat16)
    other = FewStepSampler.from_pretrained(tiny_folder)
    assert copy.size == other.size == SIZE
    assert is_embedded(SIZE, prompts_of(copy))
    assert is_embedded((64, 64), prompts_of(copy)), "tiny-sd3 has the same prompts"
    assert not is_embedded(SIZE, prompts_of(other))
    assert not is_embedded((512, 512), prompts_of(copy), str(ASSETS / "emoji" / "train-*.tar.gz"))
    shutil.copytree(ASSETS / "tiny-gan", tmp_path / "gan")
    assert is_embedded(SIZE, open_gan(tmp_path / "gan").generator.spec.classes)
    assert not is_embedded(SIZE, ["cat", "dog"])
    assert not is_embedded(SIZE, None)


def test_the_embedded_images_are_known_by_their_contents(tmp_path):
    assert are_embedded_images("assets/emoji/heldout-*.tar.gz")
    shutil.copy(ASSETS / "emoji" / "heldout-000.tar.gz", tmp_path)
    assert are_embedded_images(str(tmp_path / "heldout-000.tar.gz"))
    assert is_embedded(SIZE, None, str(tmp_path / "*.tar.gz"))
    (tmp_path / "heldout-000.tar.gz").write_bytes(b"others")
    assert not are_embedded_images(str(tmp_path / "heldout-000.tar.gz"))
    assert not are_embedded_images(str(tmp_path / "none"))


def test_a_network_on_the_machine_validates_other_models_and_without_one_the_report_says_how_to_get_it(empty_machine):
    assert chosen_extractor("clip", embedded=True)[0] == "clip"
    assert chosen_extractor(None, embedded=True)[0] == "emoji"
    name, reason = chosen_extractor(None, embedded=False)
    assert name == "pixels"
    assert "validation_extractor=inception downloads" in reason
    dinov2 = empty_machine / "hub" / "models--facebook--dinov2-large"
    (dinov2 / "snapshots" / "1").mkdir(parents=True)
    (dinov2 / "refs").mkdir()
    (dinov2 / "refs" / "main").write_text("1")
    (dinov2 / "snapshots" / "1" / "config.json").touch()
    assert chosen_extractor(None, embedded=False)[0] == "pixels"  # a download that was interrupted
    (dinov2 / "snapshots" / "1" / "model.safetensors").touch()
    assert chosen_extractor(None, embedded=False)[0] == "dinov2"
    checkpoints = empty_machine / "torch" / "hub" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "pt_inception-2015-12-05-6726825d.pth").touch()
    assert chosen_extractor(None, embedded=False) == ("inception", "which is on this machine")


def test_pixels_finds_images_that_are_blurred_noisy_washed_out_or_oversaturated():
    with tarfile.open(ASSETS / "emoji" / "heldout-000.tar.gz") as archive:
        files = [archive.extractfile(member) for member in archive.getmembers() if member.name.endswith(".png")]
        images = np.stack([np.asarray(Image.open(file).convert("RGB")) for file in files[:600]])
    images = torch.from_numpy(images).permute(0, 3, 1, 2)
    network = load_extractor("pixels")
    real, samples = images[::2], images[1::2].float()
    noise = torch.randn(samples.shape, generator=torch.Generator().manual_seed(0))
    mean = samples.mean(dim=(2, 3), keepdim=True)
    worse = {
        "blurred": F.avg_pool2d(samples, 3, 1, 1),
        "noisy": samples + 12 * noise,
        "washed out": mean + 0.7 * (samples - mean),
        "oversaturated": samples.mean(1, keepdim=True) + 1.5 * (samples - samples.mean(1, keepdim=True)),
    }
    reference = gaussian_statistics(extract(network, real))

    def distance(changed):
        return frechet_distance(gaussian_statistics(extract(network, changed.clamp(0, 255).byte())), reference)

    untouched = distance(samples)
    ratios = {name: distance(changed) / untouched for name, changed in worse.items()}
    assert min(ratios.values()) > 1.5, ratios
    assert {} == {}
    assert network.features(network.prepare(images[:2])).shape == (2, network.dim)
