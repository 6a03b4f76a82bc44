import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
from torchvision.models import inception_v3

from gendistill.metrics.features.inception import FidInception
from gendistill.metrics.features.resize import resize_legacy


@pytest.fixture(scope="module")
def state():
    """Random weights, with batch norms that do something."""
    torch.manual_seed(0)
    network = inception_v3(weights=None, num_classes=1008, aux_logits=False, init_weights=False)
    state = network.state_dict()
    generator = torch.Generator().manual_seed(1)
    for name, tensor in state.items():
        if name.endswith(("bn.weight", "running_var")):
            tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
        elif name.endswith(("bn.bias", "running_mean")):
            tensor.copy_(0.2 * torch.randn(tensor.shape, generator=generator))
        elif name.endswith("conv.weight"):
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * (2 / tensor[0].numel()) ** 0.5)
    return state


@pytest.fixture(scope="module")
def file(state, tmp_path_factory):
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    torch.save(state, path)
    return path


@pytest.fixture(scope="module")
def images(held_out):
    return held_out[0][:2]


def relative_error(ours, theirs):
    return ((ours - theirs).norm() / theirs.norm()).item()


def features(network, images):
    with torch.inference_mode():
        return network(images)


def test_features_equal_those_of_torch_fidelity_with_the_same_weights(file, images):
    theirs = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], feature_extractor_weights_path=str(file))
    expected = features(theirs, images)[0]
    ours = features(FidInception.load(file), resize_legacy(images, 299))
    assert ours.shape == (2, 2048)
    assert expected.std(dim=0).mean() > 0.01 * expected.mean()  # the images differ to this network
    assert relative_error(ours, expected) < 1e-4


def test_features_equal_those_of_pytorch_fid_scaled_as_it_scales(file, images, tmp_path, monkeypatch):
    from pytorch_fid.inception import FID_WEIGHTS_URL, InceptionV3

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / FID_WEIGHTS_URL.rsplit("/", 1)[1]).symlink_to(file)
    resized = resize_legacy(images, 299)
    expected = features(InceptionV3(resize_input=False).eval(), resized / 255)[0].flatten(1)
    network = FidInception.load(file)
    assert relative_error(features(network, resized * (128 / 127.5)), expected) < 1e-4
    assert relative_error(features(network, resized), expected) > 1e-3  # torch-fidelity's scaling is not pytorch-fid's


def test_weights_load_alike_from_safetensors_and_without_counts_of_batches(file, state, images, tmp_path):
    resized = resize_legacy(images[:1], 299)
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "weights.safetensors")
    torch.save({k: v for k, v in state.items() if "num_batches" not in k}, tmp_path / "old.pth")
    expected = features(FidInception.load(file), resized)
    for name in ("weights.safetensors", "old.pth"):
        assert torch.equal(features(FidInception.load(tmp_path / name), resized), expected)


class Boom:
    def __reduce__(self):
        return (print, ("executed",))


def test_files_that_hold_code_or_other_tensors_are_refused_in_one_sentence(tmp_path, capsys):
    (tmp_path / "code.pth").write_bytes(pickle.dumps({"a": Boom()}, protocol=2))
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "broken.safetensors").write_bytes(b"no safetensors")
    sentences = {
        "code.pth": "cannot be read",
        "other.pth": "do not fit FID's Inception-v3",
        "list.pth": "holds a list",
        "broken.safetensors": "cannot be read",
        "absent.pth": "expects an existing file",
    }
    for name, sentence in sentences.items():
        with pytest.raises(ValueError, match=sentence) as error:
            FidInception.load(tmp_path / name)
        assert "\n" not in str(error.value)
    assert "executed" not in capsys.readouterr().out
