from types import SimpleNamespace

import pytest
import torch
from network_checks import assert_step

from gendistill.gan.architectures import DISCRIMINATORS, GENERATORS, discriminator_for, fresh_discriminator
from gendistill.gan.architectures.fresh import FEWEST
from gendistill.gan.architectures.translation import PatchDiscriminator, ResNetTranslator
from gendistill.networks.counting import parameters as count

SHAPES = [(3, 32, 32), (1, 28, 28), (3, 256, 256), (4, 17, 90), (3, 130, 6), (2, 4, 4), (3, 3, 3)]


@pytest.mark.parametrize("kind", ["noise", "image"])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("num_classes", [0, 5])
def test_it_takes_images_of_any_size_and_a_hinge_step_reaches_every_parameter(kind, shape, num_classes):
    torch.manual_seed(0)
    network = fresh_discriminator(kind, shape, num_classes, 60_000)
    assert count(network) <= 60_000
    labels = (torch.tensor([1, 4]),) if num_classes else ()
    logits = network(torch.rand(2, *shape) * 2 - 1, *labels)
    assert logits.shape[0] == 2
    assert logits.ndim == {"noise": 1, "image": 4}[kind]
    assert_step(network, (torch.relu(1 - logits[0]) + torch.relu(1 + logits[1])).mean(), torch.optim.Adam(network.parameters()))


@pytest.mark.parametrize("kind", ["noise", "image"])
@pytest.mark.parametrize("shape", [*SHAPES, (8, 32, 32), (64, 16, 16)])
@pytest.mark.parametrize("num_classes", [0, 5])
def test_it_is_the_widest_that_the_budget_takes(kind, shape, num_classes):
    fitted = count(fresh_discriminator(kind, shape, num_classes, 60_000))
    assert count(fresh_discriminator(kind, shape, num_classes, fitted)) == fitted
    assert count(fresh_discriminator(kind, shape, num_classes, fitted - 1)) < fitted


@pytest.mark.parametrize("kind", ["noise", "image"])
def test_it_spends_most_of_its_budget(kind):
    for budget in (100_000, 1_000_000):
        assert 0.85 * budget < count(fresh_discriminator(kind, (3, 32, 48), 3, budget)) <= budget


@pytest.mark.parametrize(
    ("shape", "left"), [((3, 8, 8), (8, 8)), ((3, 32, 32), (8, 8)), ((3, 256, 256), (8, 8)), ((3, 256, 32), (32, 4))]
)
def test_larger_images_are_halved_more_often(shape, left):
    network, seen = fresh_discriminator("noise", shape, 0, 100_000), []
    network.blocks[-1].register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape[2:])))
    network(torch.randn(1, *shape))
    assert seen == [left]


def test_without_a_budget_it_is_about_as_large_as_its_generator():
    spec = SimpleNamespace(kind="noise", output_shape=(3, 16, 16), num_classes=2)
    generator = SimpleNamespace(network=GENERATORS["ResNetGenerator"](8, 2, (64, 64, 64)), spec=spec)
    size = count(generator.network)
    assert size > FEWEST
    assert 0.75 * size < count(discriminator_for(generator)) <= size
    generator.network = GENERATORS["ResNetGenerator"](8, 2, (8, 8, 8))
    assert 0.75 * FEWEST < count(discriminator_for(generator)) <= FEWEST


def test_a_budget_below_the_narrowest_is_refused_with_what_that_takes():
    with pytest.raises(ValueError, match=r"num_params 10: a discriminator of 32 x 32 images takes at least (\d+)") as raised:
        fresh_discriminator("noise", (3, 32, 32), 0, 10)
    least = int(str(raised.value).split()[-1])
    assert count(fresh_discriminator("noise", (3, 32, 32), 0, least)) == least


def test_an_unknown_kind_and_a_image_without_patches_are_refused():
    with pytest.raises(ValueError, match="kind video: expects noise or image"):
        fresh_discriminator("video", (3, 32, 32))
    with pytest.raises(ValueError, match="images of 2 x 8: a discriminator of patches takes at least 3 pixels"):
        fresh_discriminator("image", (3, 2, 8))


@pytest.mark.parametrize(
    ("table", "network"),
    [(GENERATORS, ResNetTranslator(3, 3, 4, 1)), (DISCRIMINATORS, PatchDiscriminator(channels=4, num_layers=1))],
)
def test_the_tables_open_a_folder_by_the_class_that_its_config_names(table, network, tmp_path):
    network.save_pretrained(tmp_path)
    named = network.load_config(tmp_path)["_class_name"]
    assert type(table[named].from_pretrained(tmp_path)) is type(network)
