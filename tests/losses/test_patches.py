"""Patches of images as sets: where they lie does not count, how sharp they are does."""

import pytest
import torch
import torch.nn.functional as F
from scipy import stats

from gendistill.losses.distributions import patch_projections, patch_sliced_wasserstein


def images(generator, count=3, edge=12, channels=2):
    return torch.rand(count, channels, edge, edge, generator=generator).double() * 2 - 1


def lines(generator, size=3, channels=2, count=5, centred=False):
    return patch_projections(count, channels, size, generator, centred=centred).double()


def patches(image, size):
    return F.unfold(image[None], size)[0].T


@pytest.mark.parametrize("size", [1, 3])
def test_it_is_scipys_distance_of_each_images_projected_patches(size, generator):
    x, y, along = images(generator), images(generator), lines(generator, size)
    by_hand = [
        stats.wasserstein_distance(patches(ours, size) @ line.flatten(), patches(theirs, size) @ line.flatten())
        for ours, theirs in zip(x, y, strict=True)
        for line in along
    ]
    torch.testing.assert_close(patch_sliced_wasserstein(x, y, along, levels=1).item(), sum(by_hand) / len(by_hand))


def test_unpaired_it_is_scipys_distance_of_all_patches_and_sees_no_order_of_images(generator):
    x, y, along = images(generator), images(generator), lines(generator)
    ours, theirs = (torch.cat([patches(of, 3) for of in batch]) for batch in (x, y))
    by_hand = [stats.wasserstein_distance(ours @ line.flatten(), theirs @ line.flatten()) for line in along]
    found = patch_sliced_wasserstein(x, y, along, paired=False, levels=1)
    torch.testing.assert_close(found.item(), sum(by_hand) / len(by_hand))
    assert patch_sliced_wasserstein(x, x.flip(0), along, paired=False) < 1e-12
    assert patch_sliced_wasserstein(x, x.flip(0), along) > 0.01


def test_levels_are_the_mean_of_the_distances_of_halved_images(generator):
    x, y, along = images(generator), images(generator), lines(generator)
    halved = patch_sliced_wasserstein(F.avg_pool2d(x, 2), F.avg_pool2d(y, 2), along, levels=1)
    whole = patch_sliced_wasserstein(x, y, along, levels=1)
    torch.testing.assert_close(patch_sliced_wasserstein(x, y, along), (whole + halved) / 2)


def test_a_stride_leaves_patches_out(generator):
    x, y, along = images(generator, edge=9), images(generator, edge=9), lines(generator)
    kept = [torch.stack([patches(of, 3)[[0, 3, 6, 21, 24, 27, 42, 45, 48]] for of in batch]) for batch in (x, y)]
    ours, theirs = ((of @ along.flatten(1).T).sort(1).values for of in kept)
    found = patch_sliced_wasserstein(x, y, along, levels=1, stride=3)
    torch.testing.assert_close(found, (ours - theirs).abs().mean())


def test_where_a_thing_lies_does_not_count(generator):
    thing, here, there = torch.rand(1, 2, 4, 4, generator=generator), torch.zeros(1, 2, 24, 24), torch.zeros(1, 2, 24, 24)
    here[..., 4:8, 4:8], there[..., 12:16, 14:18] = thing, thing
    along = lines(generator).float()
    assert patch_sliced_wasserstein(here, there, along) < 1e-7
    assert (here - there).abs().mean() > 0.01


def test_the_mean_of_two_images_is_far_from_both_where_pixel_by_pixel_it_is_nearest(generator):
    """Edges that may be here or there: what L1 makes of them is blur."""
    here, there = torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16)
    here[..., 6:], there[..., 10:] = 1, 1
    along = lines(generator, channels=1, count=16).float()

    def of_both(distance, image):
        return distance(image, here) + distance(image, there)

    def by_patches(a, b):
        return patch_sliced_wasserstein(a, b, along)

    blurred = (here + there) / 2
    assert of_both(F.mse_loss, blurred) < of_both(F.mse_loss, here)
    assert of_both(by_patches, blurred) > of_both(by_patches, here)


def test_centred_lines_see_no_change_of_brightness_and_are_of_length_1(generator):
    x, centred, plain = images(generator), lines(generator, centred=True), lines(generator)
    assert patch_sliced_wasserstein(x, x + 0.3, centred) < 1e-6
    assert patch_sliced_wasserstein(x, x + 0.3, plain) > 0.01
    for along in (centred, plain):
        torch.testing.assert_close(along.flatten(1).norm(dim=1), torch.ones(5).double(), atol=1e-6, rtol=0)


@pytest.mark.parametrize("paired", [True, False])
def test_gradients_agree_with_finite_differences_and_descending_it_sharpens(paired, generator):
    x, y, along = images(generator, 2, 8), images(generator, 2, 8), lines(generator)
    assert torch.autograd.gradcheck(
        lambda a: patch_sliced_wasserstein(a, y, along, paired=paired), x.clone().requires_grad_(True)
    )
    blurred = F.avg_pool2d(F.pad(y, (1, 1, 1, 1), mode="replicate"), 3, 1).requires_grad_(True)
    variation = blurred.diff(dim=-1).abs().mean().item()
    optimizer = torch.optim.Adam([blurred], 0.05)
    for step in range(200):
        along = lines(torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        patch_sliced_wasserstein(blurred, y, along, paired=paired).backward()
        optimizer.step()
    wanted = y.diff(dim=-1).abs().mean().item()
    assert variation < 0.5 * wanted
    assert blurred.diff(dim=-1).abs().mean().item() > 0.8 * wanted


def test_half_precision_and_autocast_are_computed_in_float32(generator):
    x, y, along = images(generator).bfloat16(), images(generator).bfloat16(), lines(generator).float()
    with torch.autocast("cpu", torch.bfloat16):
        narrow = patch_sliced_wasserstein(x, y, along)
    assert narrow.dtype == torch.float32
    torch.testing.assert_close(narrow, patch_sliced_wasserstein(x.float(), y.float(), along))


@pytest.mark.parametrize(
    ("other", "levels", "sentence"),
    [
        ((2, 2, 12, 12), 1, "expects the shape it is compared with"),
        ((3, 2, 12, 12), 4, "expects 1 or more, the smallest of which"),
    ],
)
def test_what_cannot_be_compared_is_refused(other, levels, sentence, generator):
    with pytest.raises(ValueError, match=sentence):
        patch_sliced_wasserstein(images(generator), torch.zeros(other).double(), lines(generator), levels=levels)
