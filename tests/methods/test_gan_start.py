"""The initial student of a deep generator: whole blocks are removed before channels are."""

import pytest
import torch
from tiny_gans import built, tiny_gan

from gendistill.data.gan_batches import NoData
from gendistill.gan.architectures.rrdb import RRDBGenerator
from gendistill.gan.gan_folder import Gan, open_gan, save_gan
from gendistill.gan.generator import Generator, GeneratorSpec
from gendistill.methods.gan_start import start_student
from gendistill.networks.pruning.compress_config import CompressConfig
from gendistill.networks.pruning.pruned_architecture import RemovedBlock

SPEC = GeneratorSpec("image", (3, 8, 8), (3, 32, 32))


def deep(num_blocks):
    network, source = built(RRDBGenerator, 0, channels=16, growth=8, num_blocks=num_blocks)
    return Gan(Generator(network, SPEC), source)


def removed_of(start):
    return [path for path, module in start.network.named_modules() if isinstance(module, RemovedBlock)]


def test_a_fraction_of_the_blocks_is_removed_and_the_same_ones_of_a_peer(tmp_path):
    teacher, config, tried = deep(4), CompressConfig(factor=4, depth=0.5), []
    start = start_student(teacher, config, NoData(), 3, tried=tried.append)
    assert len(removed_of(start)) == 2
    assert sum(tried) > 4
    assert (start.teacher_macs / start.macs, start.teacher_parameters / start.parameters) == pytest.approx((4, 4), rel=0.1)
    assert removed_of(start_student(teacher, config, NoData(), 4, "random")) == removed_of(start)
    save_gan(tmp_path / "s", Gan(teacher.generator.with_network(start.network), start.source))
    image = torch.rand(1, 3, 8, 8)
    assert torch.equal(open_gan(tmp_path / "s").generator(image), start.network(image))


def test_depth_is_refused_where_there_are_no_residual_blocks():
    with pytest.raises(
        ValueError, match=r"compress\.depth 0\.5: ResNetGenerator has 0 residual blocks that .* or compress\.depth=0"
    ):
        start_student(tiny_gan(), CompressConfig(factor=2, depth=0.5), NoData(), 0)
    kept = CompressConfig(factor=2, depth=0.5, keep=["body.0", "body.1", "body.2.blocks.0"])
    with pytest.raises(ValueError, match="RRDBGenerator has 1 residual block that runs once"):
        start_student(deep(4), kept, NoData(), 0)


def test_the_defaults_remove_nothing_of_a_shallow_network():
    assert removed_of(start_student(deep(1), CompressConfig(factor=2), NoData(), 0)) == []


def test_esrgans_generator_has_the_parameters_of_the_papers():
    with torch.device("meta"):
        assert sum(weight.numel() for weight in RRDBGenerator().parameters()) == 16_697_987  # RRDB_PSNR_x4.pth
