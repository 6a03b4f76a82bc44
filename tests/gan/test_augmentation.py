import math

import numpy as np
import pytest
import torch

from gendistill.gan.augmentation import POLICIES, REPEATED_SAMPLES, augment

SIZES = [(8, 8), (6, 11), (24, 9), (1, 5), (3, 3)]
BELOW_1 = float(np.nextafter(np.float32(1), np.float32(0)))


def images(generator, size=(8, 8), channels=3, batch=5):
    return torch.rand(batch, channels, *size, generator=generator) * 2 - 1, torch.rand(
        batch, REPEATED_SAMPLES, generator=generator
    )


def half_up(x):
    return math.floor(x + 0.5)


def translated(x, down, right):
    """Each pixel by itself, in whole numbers of Python's."""
    _, height, width = x.shape
    far = half_up(height / 8), half_up(width / 8)
    dy, dx = (math.floor((2 * f + 1) * float(generate)) - f for f, generate in zip(far, (down, right), strict=True))
    out = torch.zeros_like(x)
    for i in range(height):
        for j in range(width):
            if 0 <= i - dy < height and 0 <= j - dx < width:
                out[:, i, j] = x[:, i - dy, j - dx]
    return out


def with_a_hole(x, down, right):
    _, height, width = x.shape
    rows, columns = half_up(height / 2), half_up(width / 2)
    top = math.floor(float(down) * (height + 1 - rows % 2)) - rows // 2
    left = math.floor(float(right) * (width + 1 - columns % 2)) - columns // 2
    out = x.clone()
    for i in range(max(top, 0), min(top + rows, height)):
        for j in range(max(left, 0), min(left + columns, width)):
            out[:, i, j] = 0
    return out


def coloured(x, brightness, saturation, contrast):
    x = x + (brightness - 0.5)
    out = torch.empty_like(x)
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            grey = x[:, i, j].mean()
            out[:, i, j] = grey + 2 * saturation * (x[:, i, j] - grey)
    return out.mean() + (contrast + 0.5) * (out - out.mean())


LOOPS = {"color": (coloured, slice(0, 3)), "translation": (translated, slice(3, 5)), "cutout": (with_a_hole, slice(5, 7))}


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("channels", [1, 3])
def test_each_policy_is_its_plain_loop(policy, size, channels, generator):
    x, draws = images(generator, size, channels)
    loop, columns = LOOPS[policy]
    expected = torch.stack([loop(one, *some) for one, some in zip(x, draws[:, columns], strict=True)])
    torch.testing.assert_close(augment(x, draws, (policy,)), expected)


@pytest.mark.parametrize("size", [*SIZES, (40, 56), (256, 200)])
@pytest.mark.parametrize("sample", [0.0, BELOW_1])
def test_at_its_extremes_a_sample_shifts_by_an_eighth_of_the_edge_and_no_farther(size, generate):
    x = torch.arange(1.0, 1 + size[0] * size[1]).reshape(1, 1, *size)
    made = augment(x, torch.full((1, REPEATED_SAMPLES), generate), ("translation",))
    far = [half_up(edge / 8) for edge in size]
    kept, left = [slice(f, None) for f in far], [slice(None, edge - f) for f, edge in zip(far, size, strict=True)]
    here, there = (left, kept) if generate == 0 else (kept, left)
    assert torch.equal(made[:, :, here[0], here[1]], x[:, :, there[0], there[1]])
    assert (made != 0).sum() == (size[0] - far[0]) * (size[1] - far[1])


@pytest.mark.parametrize("size", [*SIZES, (40, 56)])
@pytest.mark.parametrize("sample", [0.0, BELOW_1])
def test_at_its_extremes_a_sample_cuts_a_corner_of_a_quarter_of_each_edge(size, generate):
    made = augment(torch.ones(1, 1, *size), torch.full((1, REPEATED_SAMPLES), generate), ("cutout",))
    corner = made if generate == 0 else made.flip(2, 3)
    rows, columns = (half_up(edge / 2) - half_up(edge / 2) // 2 for edge in size)
    assert (corner[:, :, :rows, :columns] == 0).all()
    assert (made == 0).sum() == rows * columns


def test_every_shift_is_equally_likely(generator):
    x = torch.zeros(7000, 1, 24, 24)
    x[:, :, 12, 12] = 1
    made = augment(x, torch.rand(7000, REPEATED_SAMPLES, generator=generator), ("translation",))
    counts = made.sum((0, 1, 3))[9:16]
    assert counts.sum() == 7000
    assert (counts - 1000).abs().max() < 5 * math.sqrt(1000)


def test_the_middle_of_every_sample_of_colour_and_place_changes_nothing(generator):
    x, _ = images(generator)
    torch.testing.assert_close(augment(x, torch.full((5, REPEATED_SAMPLES), 0.5), ("color", "translation")), x)


def test_the_same_samples_make_the_same_change_however_the_batch_is_split(generator):
    x, draws = images(generator, (16, 12))
    whole = augment(x, draws)
    assert torch.equal(augment(x, draws), whole)
    torch.testing.assert_close(torch.cat([augment(x[:2], draws[:2]), augment(x[2:], draws[2:])]), whole)
    assert (augment(x, draws.flip(0)) - whole).abs().amax((1, 2, 3)).max() > 0.1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_images_of_half_precision_change_in_the_same_places(dtype, generator):
    x, draws = images(generator, (64, 48), batch=64)
    draws[:3] = torch.tensor([BELOW_1, 0.999, 0.4999])[:, None]  # which all round in bfloat16
    x = x.to(dtype)
    assert torch.equal(
        augment(x, draws, ("translation", "cutout")), augment(x.float(), draws, ("translation", "cutout")).to(dtype)
    )
    assert augment(x, draws).dtype == dtype


@pytest.mark.parametrize("policy", [*((name,) for name in POLICIES), POLICIES])
def test_gradients_pass_through(policy, generator):
    x, draws = images(generator, (4, 5), batch=3)
    x, draws = x.double().requires_grad_(), draws.double()
    assert torch.autograd.gradcheck(lambda x: augment(x, draws, policy), (x,))
    assert torch.autograd.gradgradcheck(lambda x: augment(x, draws, policy).square(), (x,))  # R1 goes through twice


def test_all_policies_are_color_then_translation_then_cutout(generator):
    x, draws = images(generator)
    one_by_one = x
    for policy in POLICIES:
        one_by_one = augment(one_by_one, draws, (policy,))
    assert torch.equal(augment(x, draws), one_by_one)
    assert torch.equal(augment(x, draws, tuple(reversed(POLICIES))), one_by_one)
    assert augment(x, draws, ()) is x


def test_an_unknown_policy_is_refused_by_its_name(generator):
    with pytest.raises(ValueError, match="augmentation colour, flip is not known; expects color, translation, cutout"):
        augment(*images(generator), ("flip", "colour", "color"))
