import hashlib
import shutil
import threading

import numpy as np
import pytest
import torch
from open_clip import create_model_from_pretrained
from PIL import Image
from torch import nn
from torchvision.models import inception_v3, resnet18
from torchvision.transforms.functional import to_pil_image
from transformers import Dinov2Config, Dinov2Model, ViTConfig, ViTModel

from gendistill.metrics.distances.frechet import frechet_distance
from gendistill.metrics.features import extractors
from gendistill.metrics.features.extractors import IMAGENET
from gendistill.metrics.features.feature_extractor import (
    EMOJI_FEATURES,
    InceptionFeatures,
    ModuleFeatures,
    extract,
    feature_batches,
    load_extractor,
    metric_name,
)
from gendistill.metrics.features.gaussian import gaussian_statistics


def test_features_do_not_depend_on_the_batch_size(extractor, held_out):
    images = held_out[0][:20]
    whole, parts = extract(extractor, images, batch_size=20), extract(extractor, images, batch_size=3)
    assert whole.shape == (20, extractor.dim)
    assert whole.dtype == torch.float32
    torch.testing.assert_close(whole, parts, rtol=1e-4, atol=1e-5)


def test_an_iterable_of_batches_gives_what_the_tensor_gives_and_reports_progress(extractor, held_out):
    images, done = held_out[0][:10], []
    streamed = extract(extractor, (batch for batch in images.split(4)), progress=done.append)
    assert done == [4, 8, 10]
    torch.testing.assert_close(streamed, extract(extractor, images, batch_size=4))


def test_an_enlarged_image_has_nearly_the_features_of_the_original(extractor, held_out):
    images = held_out[0][:16]
    large = images.repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)
    cosine = torch.cosine_similarity(extractor(images), extractor(large), dim=1)
    assert cosine.min() > 0.95


def test_the_distance_grows_with_noise(extractor, held_out):
    images, noise = held_out[0][:300], torch.Generator().manual_seed(0)
    clean = gaussian_statistics(extract(extractor, images))
    distances = []
    for sigma in (0, 10, 30, 60):
        noisy = images + sigma * torch.randn(images.shape, generator=noise)
        features = extract(extractor, noisy.round().clamp(0, 255).to(torch.uint8))
        distances.append(frechet_distance(clean, gaussian_statistics(features)))
    assert distances[0] < 1e-6
    assert distances == sorted(distances)


def test_the_protocol_names_the_metric_and_the_weights_file(extractor):
    assert metric_name(extractor) == "fd-emoji"
    digest = hashlib.sha256((EMOJI_FEATURES / "model.safetensors").read_bytes()).hexdigest()
    assert load_extractor("emoji").weights_hash == extractor.weights_hash == digest[:16]
    assert load_extractor(EMOJI_FEATURES).dim == extractor.dim == 128


def test_an_unknown_extractor_is_refused_with_the_nearest_name():
    with pytest.raises(ValueError, match="did you mean 'inception'"):
        load_extractor("incepton")
    with pytest.raises(ValueError, match="expects 'emoji', 'inception'"):
        load_extractor("/no/such/folder")


def test_images_that_are_not_uint8_are_refused(extractor):
    with pytest.raises(ValueError, match=r"torch.uint8 \(B, 3, H, W\)"):
        extract(extractor, torch.rand(2, 3, 32, 32))
    with pytest.raises(ValueError, match="at least one image"):
        extract(extractor, [])
    with pytest.raises(ValueError, match="at least one image"):
        extract(extractor, torch.zeros(0, 3, 8, 8, dtype=torch.uint8))
    with pytest.raises(ValueError, match="mode RGBA, expects RGB"):
        extract(extractor, [Image.new("RGBA", (8, 8))])
    with pytest.raises(ValueError, match=r"got float64 \(8, 8, 3\)"):
        extract(extractor, [np.zeros((8, 8, 3))])
    with pytest.raises(ValueError, match="got str"):
        extract(extractor, ["a.png"])


# ---- images of mixed sizes, threads, memory


class Pooled(nn.Module):
    """4x4 means of each channel: 48 features, whatever the size."""

    def forward(self, x):
        return nn.functional.adaptive_avg_pool2d(x, 4).flatten(1)


def test_images_of_mixed_sizes_are_resized_each_for_itself(extractor, held_out):
    images = [to_pil_image(image).resize((32 + 5 * k, 64 - 3 * k)) for k, image in enumerate(held_out[0][:9])]
    arrays = [np.asarray(image) for image in images]
    alone = torch.cat([extractor(torch.from_numpy(a.copy()).permute(2, 0, 1)[None]) for a in arrays])
    for together in (extract(extractor, iter(images), batch_size=4), extract(extractor, arrays)):
        torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)


def test_mixed_sizes_without_resizing_are_refused():
    network = ModuleFeatures(Pooled(), "pooled", None, "none")
    assert extract(network, [Image.new("RGB", (8, 8))] * 3).shape == (3, 48)
    with pytest.raises(ValueError, match="got 8x8 and 9x8 in a batch"):
        extract(network, [Image.new("RGB", (8, 8)), Image.new("RGB", (9, 8))])


def test_no_more_images_are_taken_than_the_look_ahead_allows():
    taken = 0

    def images():
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield Image.new("RGB", (8, 8))

    for number, batch in enumerate(feature_batches(ModuleFeatures(Pooled(), "pooled", 8), images(), batch_size=5)):
        assert len(batch) == 5
        assert taken <= 5 * (number + 2)
    assert taken == 100


def test_images_are_prepared_in_other_threads_and_these_end_with_an_error(held_out):
    threads = set()

    class Watched(ModuleFeatures):
        def prepare(self, images):
            threads.add(threading.current_thread().name)
            return super().prepare(images)

    running = threading.active_count()
    extract(Watched(Pooled(), "pooled", 64), held_out[0][:64], workers=2)
    assert threading.current_thread().name not in threads

    def broken():
        yield held_out[0][:4]
        raise RuntimeError("the disk is gone")

    with pytest.raises(RuntimeError, match="the disk is gone"):
        extract(Watched(Pooled(), "pooled", 64), broken())
    assert threading.active_count() == running


# ---- networks


def save_random(network, path):
    torch.manual_seed(0)
    torch.save(network.state_dict(), path)
    return path


def test_a_module_is_normalised_and_named_after_its_weights(held_out):
    torch.manual_seed(0)
    module = nn.Conv2d(3, 7, 5, stride=3)
    network = ModuleFeatures(module, "mine", 40, "legacy", IMAGENET)
    assert (network.dim, network.name) == (7, f"mine-{network.weights_hash[:8]}")
    assert metric_name(network) == f"fd-mine-{network.weights_hash[:8]}"
    images = network.resizing(held_out[0][:3])
    mean, deviation = (torch.tensor(channel).view(3, 1, 1) for channel in IMAGENET)
    torch.testing.assert_close(network(held_out[0][:3]), module((images - mean) / deviation).mean(dim=(2, 3)))
    module.bias.data += 1
    assert ModuleFeatures(module, "mine", 40).weights_hash != network.weights_hash
    with pytest.raises(ValueError, match=r"its module returned \(1, 3, 1600\)"):
        ModuleFeatures(nn.Flatten(2), "flat", 40)


def test_inception_is_fid_only_with_the_public_weights(tmp_path, monkeypatch):
    network = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
    file = save_random(network, tmp_path / "inception.pth")
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    for resize, name in {"legacy": f"inception-{digest[:8]}", "clean": f"inception-clean-{digest[:8]}"}.items():
        other = load_extractor(file, resize=resize)
        assert (other.name, other.dim, other.weights_hash) == (name, 2048, digest[:16])
        assert metric_name(other) == f"fd-{name}"
    monkeypatch.setattr(extractors, "PUBLIC_HASH", digest[:8])  # as if these were the public weights
    assert [metric_name(InceptionFeatures(file, resize=r)) for r in ("legacy", "clean", "none")] == [
        "fid",
        "fid-clean",
        "fd-inception-none",
    ]


def test_clip_embeds_as_open_clip_does(held_out):
    folder = EMOJI_FEATURES.parent / "tiny-clip"
    network = load_extractor(folder)
    model, preprocess = create_model_from_pretrained(f"local-dir:{folder}")
    with torch.inference_mode():
        expected = model.encode_image(torch.stack([preprocess(to_pil_image(image)) for image in held_out[0][:6]]))
    torch.testing.assert_close(extract(network, held_out[0][:6]), expected)
    assert network.dim == expected.shape[1]
    assert metric_name(network) == f"fd-clip-{network.weights_hash[:8]}"
    assert "32x32" in network.resize


def test_dinov2_gives_the_class_token_of_clean_images(tmp_path, held_out):
    torch.manual_seed(0)
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14)
    model = Dinov2Model(config).eval()
    model.save_pretrained(tmp_path)
    network = load_extractor(tmp_path)
    assert (network.dim, network.name) == (16, f"dinov2-{network.weights_hash[:8]}")
    images = network.prepare(held_out[0][:4])
    assert images.shape == (4, 3, 28, 28)
    with torch.inference_mode():
        expected = model(pixel_values=images).last_hidden_state[:, 0]
    torch.testing.assert_close(network(held_out[0][:4]), expected)
    ViTModel(ViTConfig(hidden_size=16, num_hidden_layers=1, num_attention_heads=2)).save_pretrained(tmp_path / "vit")
    with pytest.raises(ValueError, match="is a vit; expects a DINOv2"):
        load_extractor(f"dinov2:{tmp_path / 'vit'}")
    assert load_extractor(f"dinov2:{tmp_path}", resize="legacy").name == f"dinov2-legacy-{network.weights_hash[:8]}"


def test_torchvision_gives_what_enters_the_classifier(tmp_path, held_out):
    model = resnet18(weights=None).eval()
    file = save_random(model, tmp_path / "resnet.pth")
    network = load_extractor(f"torchvision:resnet18:{file}")
    assert network.dim == 512
    assert network.name == f"resnet18-{network.weights_hash[:8]}"
    with torch.inference_mode():
        logits = model(network.prepare(held_out[0][:2]))
        torch.testing.assert_close(model.fc(network(held_out[0][:2])), logits)
    with pytest.raises(ValueError, match="does not fit torchvision's resnet34"):
        load_extractor(f"torchvision:resnet34:{file}")
    with pytest.raises(ValueError, match="expects a name of torchvision"):
        load_extractor("torchvision:resnet19")


# ---- names, and what cannot be had


def test_every_extractor_and_convention_has_a_name_of_its_own(tmp_path):
    inception = save_random(
        inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False), tmp_path / "inception.pth"
    )
    resnet = f"torchvision:resnet18:{save_random(resnet18(weights=None), tmp_path / 'resnet.pth')}"
    shutil.copytree(EMOJI_FEATURES, tmp_path / "emoji")
    loaded = [load_extractor("emoji"), load_extractor(tmp_path / "emoji")]
    assert loaded[0].name == loaded[1].name == "emoji"  # the same weights elsewhere
    for resize in ("clean", "legacy", "clean-lanczos"):
        loaded += [load_extractor(name, resize=resize) for name in (inception, resnet)]
    assert len({metric_name(network) for network in loaded[1:]}) == 7
    assert len({(network.resize, network.weights_hash) for network in loaded[1:]}) == 7


@pytest.mark.parametrize("name", ["emoji", "clip", "clip:ViT-B-32/laion2b_s34b_b79k"])
def test_an_extractor_that_resizes_in_its_own_way_takes_no_convention(name):
    with pytest.raises(ValueError, match="resize: got 'legacy'"):
        load_extractor(name, resize="legacy")


def test_weights_that_cannot_be_fetched_are_one_sentence_that_asks_for_a_path(tmp_path, monkeypatch):
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    nowhere = "http://127.0.0.1:9/weights.pth"  # nothing listens on the discard port
    monkeypatch.setattr(extractors, "URL", nowhere)
    for name in ("inception", "dinov2", "dinov2:someone/no-such-model", "ViT-B-32/laion2b_s34b_b79k"):
        with pytest.raises(ValueError, match=r"cannot be downloaded from .*expects a local path instead") as error:
            load_extractor(name)
        assert "\n" not in str(error.value)


def test_a_folder_of_an_extractors_name_does_not_take_its_place(extractor, tmp_path, monkeypatch):
    (tmp_path / "emoji").mkdir()
    monkeypatch.chdir(tmp_path)
    assert load_extractor("emoji").weights_hash == extractor.weights_hash
    with pytest.raises(ValueError, match="expects 'emoji', 'inception'"):
        load_extractor("./emoji")
