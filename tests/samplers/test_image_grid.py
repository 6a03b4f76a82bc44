import pytest
import torch
from torchvision.utils import make_grid

from gendistill.samplers import image_grid


@pytest.mark.parametrize(("count", "columns", "padding"), [(1, 8, 2), (3, 8, 2), (8, 8, 2), (11, 4, 2), (6, 3, 0)])
def test_a_grid_of_images_is_that_of_torchvision(count, columns, padding):
    images = torch.rand(count, 3, 5, 7)
    assert torch.equal(image_grid(images, columns, padding), make_grid(images, nrow=columns, padding=padding))
