"""A discriminator's logits, whatever it gives."""

import pytest
import torch
from torch import nn

from gendistill.gan.discriminator import Discriminator, adapt
from gendistill.gan.generator import GeneratorSpec

SPEC = GeneratorSpec("noise", (4,), (3, 8, 8), 5)
LOGITS = torch.tensor([[0.1, 2.0, -1.0, 0.5, 0.3, 1.5], [1.0, 0.0, 2.0, -2.0, 0.2, 0.4]])


class Fixed(nn.Module):
    """It gives what it holds, for as many images as come."""

    def __init__(self, output):
        super().__init__()
        self.output = output

    def forward(self, x, labels=None):
        return self.output


def test_logits_of_every_shape_are_logits_of_images_or_patches():
    labels = torch.tensor([1, 4])
    one = LOGITS[:, :1]
    for output in (one[:, 0], one, one[:, :, None, None], (one, LOGITS[:, :5])):
        assert torch.equal(adapt(Fixed(output), SPEC)(torch.zeros(2, 3, 8, 8), labels), one[:, 0])
    patches = torch.randn(2, 1, 3, 3)
    assert adapt(Fixed(patches), SPEC)(torch.zeros(2, 3, 8, 8), labels) is patches
    by_class = adapt(Fixed(LOGITS[:, :5]), SPEC)(torch.zeros(2, 3, 8, 8), labels)
    assert torch.equal(by_class, torch.stack([LOGITS[0, 1], LOGITS[1, 4]]))


def test_classes_and_made_are_the_log_odds_of_being_real():
    """Salimans et al. 2016, section 5: the share of "made" in the softmax is 1 - D."""
    logits = Discriminator(Fixed(LOGITS), True, 5)(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]))
    made = LOGITS.softmax(1)[:, -1]
    assert torch.allclose(logits, ((1 - made) / made).log(), atol=1e-6)


def test_a_discriminator_that_gives_no_logits_is_told_in_a_sentence():
    for output in (torch.zeros(2, 9), None, {"logits": LOGITS}, torch.zeros(3)):
        with pytest.raises(ValueError, match="gives") as error:
            adapt(Fixed(output), SPEC)
        assert "\n" not in str(error.value)
