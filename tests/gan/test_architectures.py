"""Generators of the literature: each is opened, compressed 4 times, trained, saved and opened again."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from image_generators import UGATIT, CycleGAN, Pix2Pix, RRDBNet, SPADEGenerator, StarGAN
from noise_generators import NORMS, SAGAN, BigGAN, ConditionalGAN, FixedView, NormedGenerator, TransGAN
from style_generators import PGGAN, GroupedStyleGAN2, HookedPGGAN
from tiny_gans import step_of, tiny_method
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from gendistill.data.gan_batches import NoData
from gendistill.gan.gan_folder import Gan, NetworkSource, open_gan, save_gan
from gendistill.gan.generator import Generator
from gendistill.gan.generator_config import GeneratorConfig
from gendistill.gan.inspecting import find_spec
from gendistill.methods.gan_start import Start, start_student
from gendistill.networks.pruning.compress_config import CompressConfig

pytestmark = pytest.mark.filterwarnings("ignore:.*(weight_norm|spectral_norm).*:FutureWarning")


@dataclass(frozen=True)
class Architecture:
    """A generator of the literature, and a second input size that it also takes."""

    network: type[nn.Module]
    arguments: dict[str, Any] = field(default_factory=dict)
    input_shape: list[int] | None = None
    other_size: int | None = None

    def gan(self) -> Gan:
        """A teacher with random weights, none of which is zero, as gendistill opens it."""
        torch.manual_seed(0)
        network = self.network(**self.arguments).eval()
        with torch.no_grad():
            for weight in network.parameters():
                weight.add_(0.02 * torch.randn_like(weight))
        spec = find_spec(network, self.arguments, GeneratorConfig(input_shape=self.input_shape))
        source = NetworkSource(f"{self.network.__module__}:{self.network.__name__}", self.arguments)
        return Gan(Generator(network, spec), source)


ARCHITECTURES = {
    "ESRGAN with 7 blocks": Architecture(RRDBNet, {"num_blocks": 7}, [3, 8, 8], 12),
    "ESRGAN with pixel shuffle": Architecture(RRDBNet, {"num_blocks": 2, "shuffle": True}, [3, 8, 8], 12),
    "Real-ESRGAN of scale 2": Architecture(RRDBNet, {"num_blocks": 2, "scale": 2}, [3, 16, 16], 24),
    "CycleGAN": Architecture(CycleGAN, {}, [3, 16, 16], 24),
    "pix2pix": Architecture(Pix2Pix, {}, [3, 32, 32], 64),
    "StarGAN": Architecture(StarGAN, {}, [3, 16, 16], 24),
    "U-GAT-IT": Architecture(UGATIT, {"light": False}, [3, 16, 16]),
    "U-GAT-IT light": Architecture(UGATIT, {}, [3, 16, 16], 24),
    "SPADE": Architecture(SPADEGenerator, {}, [3, 16, 16], 24),
    **{f"DCGAN with {norm}": Architecture(NormedGenerator, {"norm": norm}) for norm in NORMS},
    "DCGAN with Unflatten": Architecture(FixedView, {"form": "Unflatten"}),
    "DCGAN with a reshape": Architecture(FixedView, {"form": "Reshape"}),
    "conditional GAN": Architecture(ConditionalGAN),
    "SAGAN": Architecture(SAGAN),
    "TransGAN": Architecture(TransGAN),
    "TransGAN with fused attention": Architecture(TransGAN, {"fused": True}),
    "PGGAN": Architecture(PGGAN),
    "PGGAN with hooks": Architecture(HookedPGGAN),
    "StyleGAN2": Architecture(GroupedStyleGAN2),
    "BigGAN": Architecture(BigGAN),
}


class CountedByShapes(TorchDispatchMode):
    """Multiply-accumulates, counted by the shapes of every product and convolution that runs."""

    macs = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        name = func.overloadpacket.__name__
        if name == "convolution":
            x, weight, transposed = args[0], args[1], args[6]
            self.macs += (x if transposed else output).numel() * weight[0].numel()
        elif name in ("mm", "bmm", "addmm", "baddbmm"):
            self.macs += output.numel() * args[name in ("addmm", "baddbmm")].shape[-1]
        elif name.startswith("_scaled_dot_product"):
            q, k, v = args[:3]
            self.macs += math.prod(q.shape[:-1]) * k.shape[-2] * (q.shape[-1] + v.shape[-1])
        return output


def macs_by_shapes(network: nn.Module, inputs: tuple[Tensor, ...]) -> int:
    with torch.no_grad(), CountedByShapes() as counted:
        network.eval()(*inputs)
    return counted.macs


def parameters_by_state(network: nn.Module) -> int:
    return sum(weight.numel() for weight in dict(network.named_parameters()).values())


@pytest.fixture(params=ARCHITECTURES, scope="module")
def compressed(request: pytest.FixtureRequest) -> tuple[Architecture, Gan, Start]:
    architecture = ARCHITECTURES[request.param]
    gan = architecture.gan()
    return architecture, gan, start_student(gan, CompressConfig(factor=4), NoData(), 0)


def test_it_is_compressed_4_times_by_an_independent_count(compressed: tuple[Architecture, Gan, Start]) -> None:
    _, gan, start = compressed
    example = gan.generator.example()
    assert start.teacher_macs == macs_by_shapes(gan.generator.network, example)
    assert start.macs == macs_by_shapes(start.network, example)
    assert start.teacher_macs / start.macs == pytest.approx(4, rel=0.11)
    assert start.parameters == parameters_by_state(start.network)
    assert start.teacher_parameters / start.parameters == pytest.approx(4, rel=0.11)
    assert start.not_pruned == {}


def test_it_is_trained_in_every_weight_and_opens_from_its_folder(
    compressed: tuple[Architecture, Gan, Start], tmp_path: Path
) -> None:
    architecture, gan, start = compressed
    method = tiny_method(gan, NoData(), start, adversarial=0, output={"l1": 1, "perceptual": 0}, features={"hints": 1})
    student = start.network
    before = {name: weight.detach().clone() for name, weight in student.named_parameters()}
    optimizer = torch.optim.Adam(student.parameters(), 1e-3)
    for step in range(2):
        (update,) = step_of(method, step=step, batch=3)
        optimizer.zero_grad()
        update.loss.backward()
        assert [name for name, weight in student.named_parameters() if weight.grad is None] == []
        optimizer.step()
    assert [name for name, weight in student.named_parameters() if torch.equal(weight, before[name])] == []

    spec, generator = gan.generator.spec, gan.generator.with_network(student.eval())
    save_gan(tmp_path, Gan(generator, start.source))
    opened = open_gan(tmp_path).generator
    inputs, *labels = gan.generator.example(2)
    with torch.no_grad():
        torch.testing.assert_close(opened(inputs, *labels), generator(inputs, *labels), rtol=1e-4, atol=1e-4)
        assert opened(inputs, *labels).shape == (2, *spec.output_shape)
        if architecture.other_size is not None:
            larger = nn.functional.interpolate(inputs, (architecture.other_size,) * 2)
            scale = spec.scale or 1
            assert opened(larger, *labels).shape == (2, 3, *(scale * architecture.other_size,) * 2)


@pytest.mark.parametrize("form", ["view", "reshape", "unflatten"])
def test_a_reshape_that_a_forward_fixes_is_refused_with_the_layer_and_the_change_that_helps(form: str) -> None:
    gan = Architecture(FixedView, {"form": form}).gan()
    sentence = (
        r"compress 4: .*; fc is not pruned \(the network \(FixedView\) reshapes to the sizes \[.*64, 4, 4\] that its forward "
        r"fixes; -1 instead of the channels there lets it be pruned\); give .* --student module:Class"
    )
    with pytest.raises(ValueError, match=sentence):
        start_student(gan, CompressConfig(factor=4), NoData(), 0)
    quarter = macs_by_shapes(gan.generator.network, gan.generator.example()) // 4
    start = start_student(gan, CompressConfig(macs=quarter), NoData(), 0)
    assert start.teacher_macs / start.macs == pytest.approx(4, rel=0.11)
