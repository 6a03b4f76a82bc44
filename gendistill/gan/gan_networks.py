"""A student GAN in training: the generator with its regressors, its average, and what of both a checkpoint holds."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from gendistill.gan.generator import Generator
from gendistill.networks.hints import Hint, Regressors, tap
from gendistill.training.ema import MovingAverage


class StudentWithFeatures(nn.Module):
    """A generator as it learns: its images and its features, as one module, which DDP can wrap.

    Args:
        paths: the layers whose features are asked for.
        regressors: what brings these to the channels of the teacher's; None leaves them as they are.
    """

    def __init__(self, generator: Generator, paths: list[str], regressors: Regressors | None = None) -> None:
        super().__init__()
        self.network = generator.network
        self.regressors = regressors
        self._generator, self._paths = generator, paths

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Images (B, C, H, W) in [-1, 1], and a feature map a path."""
        images, features = tapped(self._generator, self._paths, inputs, labels)
        return images, features if self.regressors is None else self.regressors(features)


def tapped(generator: Generator, paths: list[str], inputs: Tensor, labels: Tensor | None) -> tuple[Tensor, list[Tensor]]:
    """A generator's images, and its features at `paths`."""
    output, features = tap(generator.network, paths, *generator.arguments(inputs, labels))
    return generator.images(output), features


@dataclass
class GanNetworks(MovingAverage):
    """The student's generator and its moving average.

    Attributes:
        student: wrapped by whatever the processes need; called for images and features.
        average: what becomes the student.
    """

    teacher: Generator
    student: Any
    average: Generator
    trained: dict[str, nn.Parameter] = field(default_factory=dict)
    averaged: dict[str, nn.Parameter] = field(default_factory=dict)
    shards = False

    def __post_init__(self) -> None:
        self._learning = self.student.network
        self.trained = dict(self._learning.named_parameters())
        self.averaged = dict(self.average.network.named_parameters())

    def statistics(self) -> dict[str, tuple[Tensor, Tensor]]:
        newest, average = persistent_buffers(self._learning), persistent_buffers(self.average.network)
        return {name: (newest[name], average[name]) for name in newest}


def gan_networks(teacher: Generator, student: nn.Module, hints: list[Hint]) -> GanNetworks:
    """Networks whose student starts as `student`, in float32."""
    student = student.float().train().requires_grad_(True)
    average = copy.deepcopy(student).eval().requires_grad_(False)
    return GanNetworks(
        teacher,
        StudentWithFeatures(teacher.with_network(student), [hint.student_path for hint in hints], Regressors(hints)),
        teacher.with_network(average),
    )


def persistent_buffers(network: nn.Module) -> dict[str, Tensor]:
    """Those that belong to a state dict, by name."""
    names = network.state_dict().keys() - dict(network.named_parameters()).keys()
    return {name: buffer for name, buffer in network.named_buffers() if name in names}
