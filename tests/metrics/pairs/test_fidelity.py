import math
import pickle
import socket

import numpy as np
import pytest
import torch
import torchvision
from safetensors.torch import save_file
from torchmetrics.functional.image import peak_signal_noise_ratio as torchmetrics_psnr

from gendistill.metrics.features.feature_extractor import extract
from gendistill.metrics.measure import measure_pairs
from gendistill.metrics.metric import ImagePairs
from gendistill.metrics.pairs.fidelity import feature_cosine, lpips_distance, psnr, ssim
from gendistill.metrics.pairs.perceptual import BACKBONES, available_lpips, load_lpips


@pytest.fixture(scope="module")
def pairs(held_out):
    """24 real images uint8 (N, 3, 32, 32), and the same with noise, a shift or another image in their place."""
    images = held_out[0][:24]
    noise = torch.randint(-40, 40, images.shape, generator=torch.Generator().manual_seed(0))
    noisy = (images.int() + noise).clamp(0, 255).to(torch.uint8)
    others = torch.cat([noisy[:8], images[8:16].roll(2, dims=-1), images[16:].flip(0)])
    return images, others


@pytest.fixture(scope="module")
def backbone(tmp_path_factory):
    """backbone("alex"): a file of torchvision's network with random weights, made once."""
    made = {}

    def file_of(network):
        if network not in made:
            with torch.device("meta"):
                features = torchvision.models.get_model(BACKBONES[network].builder, weights=None).features
            features = features.to_empty(device="cpu")
            generator = torch.Generator().manual_seed(len(made))
            for parameter in features.parameters():
                torch.nn.init.normal_(parameter, std=parameter[0].numel() ** -0.5, generator=generator)
            made[network] = tmp_path_factory.mktemp("backbones") / f"{network}.pth"
            torch.save({f"features.{name}": tensor for name, tensor in features.state_dict().items()}, made[network])
        return made[network]

    return file_of


def as_numpy(image):
    return image.permute(1, 2, 0).numpy()


def test_an_error_of_one_tenth_of_the_peak_is_20_decibel_in_either_dtype():
    zeros, ones = torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8)
    torch.testing.assert_close(psnr(zeros, zeros + 0.2), torch.full((2,), 20.0))
    bytes_ = (ones * 100).to(torch.uint8)
    torch.testing.assert_close(psnr(bytes_, bytes_ + 51), torch.full((2,), 20 * math.log10(5)))


def test_equal_images_have_infinite_psnr():
    image = torch.rand(1, 3, 8, 8)
    assert psnr(image, image).item() == math.inf


@pytest.mark.parametrize("measure", [psnr, ssim])
def test_images_of_different_dtype_are_refused(measure):
    with pytest.raises(ValueError, match="expects equal dtypes"):
        measure(torch.zeros(1, 3, 16, 16), torch.zeros(1, 3, 16, 16, dtype=torch.uint8))


def test_psnr_is_that_of_skimage_and_of_torchmetrics(pairs):
    a, b = pairs
    values = psnr(a, b)
    theirs = pytest.importorskip("skimage.metrics").peak_signal_noise_ratio
    expected = [theirs(as_numpy(x), as_numpy(y)) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(values, expected, rtol=1e-5)
    of_torchmetrics = torchmetrics_psnr(a.float(), b.float(), data_range=255.0, reduction="none", dim=(1, 2, 3))
    torch.testing.assert_close(values, of_torchmetrics, rtol=1e-5, atol=0)


@pytest.mark.parametrize("size", [(32, 32), (11, 11), (13, 30)])
def test_ssim_is_that_of_skimage(pairs, size):
    a, b = (images[..., : size[0], : size[1]] for images in pairs)
    settings = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False, "channel_axis": 2}
    theirs = pytest.importorskip("skimage.metrics").structural_similarity
    expected = [theirs(as_numpy(x), as_numpy(y), **settings) for x, y in zip(a, b, strict=True)]
    np.testing.assert_allclose(ssim(a, b), expected, atol=1e-6)


def test_ssim_is_the_same_of_bytes_and_of_floats_and_for_any_batch(pairs):
    a, b = pairs
    values = ssim(a, b)
    torch.testing.assert_close(ssim(a / 127.5 - 1, b / 127.5 - 1), values, rtol=0, atol=1e-5)
    many = ssim(a.repeat(4, 1, 1, 1), b.repeat(4, 1, 1, 1))
    torch.testing.assert_close(many, values.repeat(4))
    torch.testing.assert_close(ssim(a, a), torch.ones(len(a)))


def test_ssim_of_flat_images_is_the_closed_form():
    """Without variance only the means count: (2 m n + c1) / (m^2 + n^2 + c1), c1 = (0.01 * 255)^2."""
    a, b = (torch.full((1, 3, 40, 40), value, dtype=torch.uint8) for value in (250, 200))
    c1 = 2.55**2
    assert ssim(a, b).item() == pytest.approx((2 * 250 * 200 + c1) / (250**2 + 200**2 + c1), abs=1e-6)


def test_images_below_the_window_of_ssim_are_refused_in_one_sentence():
    small = torch.zeros(1, 3, 10, 32, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"got \(1, 3, 10, 32\), SSIM expects \(N, C, H, W\) of at least 11x11 pixels"):
        ssim(small, small)


def test_feature_cosine_is_1_for_parallel_and_0_for_orthogonal_features():
    a, b = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    torch.testing.assert_close(feature_cosine(a, b), torch.tensor([1.0, 0.0]))


@pytest.mark.filterwarnings("ignore:The parameter 'pretrained'", "ignore:Arguments other than a weight enum")
@pytest.mark.parametrize("network", list(BACKBONES))
def test_lpips_is_that_of_its_authors_package_with_the_same_weights(pairs, backbone, network):
    theirs = pytest.importorskip("lpips").LPIPS(net=network, pnet_rand=True, verbose=False)
    stored = torch.load(backbone(network), weights_only=True)
    features = torch.nn.Sequential(*(layer for part in theirs.net.children() for layer in part.children()))
    features.load_state_dict(dict(zip(features.state_dict(), list(stored.values())[: len(features.state_dict())], strict=True)))
    a, b = (images[::6] for images in pairs)
    with torch.no_grad():
        expected = theirs(a / 127.5 - 1, b / 127.5 - 1).flatten()
    ours = lpips_distance(load_lpips(network, weights=backbone(network)), a, b)
    assert expected.min() > 0
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-7)


def test_lpips_of_equal_images_is_0_and_of_swapped_ones_the_same(pairs, backbone):
    measure = load_lpips(weights=backbone("alex"))
    a, b = pairs
    assert lpips_distance(measure, a, a).abs().max() == 0
    torch.testing.assert_close(lpips_distance(measure, a, b), lpips_distance(measure, b, a))
    torch.testing.assert_close(lpips_distance(measure, a / 127.5 - 1, b / 127.5 - 1), lpips_distance(measure, a, b))


def test_weights_may_be_safetensors_and_their_hash_tells_them_apart(pairs, backbone, tmp_path):
    stored = torch.load(backbone("squeeze"), weights_only=True)
    save_file(stored, tmp_path / "squeeze.safetensors")
    a, b = pairs
    one, two = (load_lpips("squeeze", weights=path) for path in (backbone("squeeze"), tmp_path / "squeeze.safetensors"))
    assert torch.equal(lpips_distance(one, a, b), lpips_distance(two, a, b))
    assert len(one.weights_hash) == 16
    assert one.weights_hash != two.weights_hash


def test_nothing_is_downloaded_without_being_asked(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *address, **_: asked.append(address))
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    measure, why = available_lpips("alex")
    assert measure is None
    assert why.startswith("lpips: not measured, weights: torchvision's alexnet is not on this machine")
    assert asked == []
    assert list(tmp_path.rglob("*.pth")) == []


def test_weights_that_torchvision_has_downloaded_before_are_found(tmp_path, monkeypatch, backbone):
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    (folder / BACKBONES["squeeze"].file).write_bytes(backbone("squeeze").read_bytes())
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    measure, why = available_lpips("squeeze")
    assert measure is not None, why
    assert (measure.name, why) == ("lpips-squeeze", "")


class Stranger:
    def __reduce__(self):
        return (exec, ("raise SystemExit",))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
def test_weights_that_cannot_be_used_get_a_sentence(tmp_path, backbone):
    (tmp_path / "code.pth").write_bytes(pickle.dumps(Stranger()))
    (tmp_path / "broken.safetensors").write_bytes(b"nothing")
    (tmp_path / "cut.pth").write_bytes(backbone("squeeze").read_bytes()[:1000])
    torch.save([1, 2], tmp_path / "list.pth")
    for name in ("code.pth", "broken.safetensors", "cut.pth"):
        with pytest.raises(ValueError, match=f"{name} cannot be read"):
            load_lpips(weights=tmp_path / name)
    with pytest.raises(ValueError, match="holds a list; expects only named tensors"):
        load_lpips(weights=tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds other tensors; expects those of torchvision's alexnet"):
        load_lpips("alex", weights=backbone("squeeze"))
    with pytest.raises(ValueError, match=r"weights: got .*expects an existing file"):  # and nothing is fetched in its place
        load_lpips(weights=tmp_path / "none.pth", download=True)
    with pytest.raises(ValueError, match="network: got 'resnet', expects one of alex, vgg, squeeze"):
        load_lpips("resnet")


def test_images_too_small_for_lpips_are_refused_and_the_least_are_taken(backbone):
    measure = load_lpips("alex", weights=backbone("alex"))
    least = torch.zeros(1, 3, 31, 31)
    assert lpips_distance(measure, least, least).item() == 0
    with pytest.raises(ValueError, match="got 40x30, lpips-alex expects at least 31x31"):
        lpips_distance(measure, torch.zeros(1, 3, 30, 40), torch.zeros(1, 3, 30, 40))


def test_all_that_can_be_measured_of_pairs_is_measured_with_intervals(pairs, extractor, backbone):
    a, b = pairs
    lpips = load_lpips("alex", weights=backbone("alex"))
    found = measure_pairs(ImagePairs(a, b, extract(extractor, a), extract(extractor, b), lpips))
    assert list(found.values) == list(found.intervals) == ["psnr", "ssim", "feature_cosine", "lpips-alex"]
    assert found.values["ssim"] == pytest.approx(ssim(a, b).mean().item())


def test_what_cannot_be_measured_of_pairs_is_left_out_and_equal_ones_have_100_decibels():
    small = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    assert measure_pairs(ImagePairs(small, small)).values == {"psnr": 100.0}


def test_no_pairs_and_pairs_of_two_sizes_are_refused():
    some = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    with pytest.raises(ValueError, match="N at least 1"):
        ImagePairs(some[:0], some[:0])
    with pytest.raises(ValueError, match="expects equal shapes"):
        ImagePairs(some, some[..., :16])
