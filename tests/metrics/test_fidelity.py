import math

import pytest
import torch

from gendistill.metrics.fidelity import feature_cosine, psnr


def test_an_error_of_one_tenth_of_the_peak_is_20_decibel_in_either_dtype():
    zeros, ones = torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8)
    torch.testing.assert_close(psnr(zeros, zeros + 0.2), torch.full((2,), 20.0))
    bytes_ = (ones * 100).to(torch.uint8)
    torch.testing.assert_close(psnr(bytes_, bytes_ + 51), torch.full((2,), 20 * math.log10(5)))


def test_equal_pictures_have_infinite_psnr():
    picture = torch.rand(1, 3, 8, 8)
    assert psnr(picture, picture).item() == math.inf


def test_pictures_of_different_dtype_are_refused():
    with pytest.raises(ValueError, match="takes equal ones"):
        psnr(torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 8, dtype=torch.uint8))


def test_feature_cosine_is_1_for_parallel_and_0_for_orthogonal_features():
    a, b = torch.tensor([[1.0, 0.0], [1.0, 0.0]]), torch.tensor([[3.0, 0.0], [0.0, 2.0]])
    torch.testing.assert_close(feature_cosine(a, b), torch.tensor([1.0, 0.0]))
