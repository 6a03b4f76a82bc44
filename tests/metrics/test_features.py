import hashlib

import pytest
import torch

from gendistill.metrics.features import EMOJI_FEATURES, extract, load_extractor, metric_name
from gendistill.metrics.frechet import frechet_distance, gaussian_statistics


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


def test_an_enlarged_picture_has_nearly_the_features_of_the_original(extractor, held_out):
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
    with pytest.raises(ValueError, match="takes 'emoji', 'inception'"):
        load_extractor("/no/such/folder")


def test_pictures_that_are_not_uint8_are_refused(extractor):
    with pytest.raises(ValueError, match=r"torch.uint8 \(B, 3, H, W\)"):
        extract(extractor, torch.rand(2, 3, 32, 32))
    with pytest.raises(ValueError, match="at least one picture"):
        extract(extractor, [])
