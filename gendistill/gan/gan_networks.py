"""The networks of a GAN student in training: the generator with its regressors, and its EMA."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from gendistill.gan.generator import Generator
from gendistill.networks.hints import Hint, Regressors, tap
from gendistill.training.ema import MovingAverage


class StudentWithFeatures(nn.Module):
    """A student generator with its images and features as output, as one module that DDP can wrap.

    Args:
        paths: the layers whose features are returned.
        regressors: map the features to the teacher's channels; None returns them unchanged.
    """

    def __init__(self, generator: Generator, paths: list[str], regressors: Regressors | None = None) -> None:
        super().__init__()
        self.network = generator.network
        self.regressors = regressors
        self._generator, self._paths = generator, paths

    def forward(self, inputs: Tensor, labels: Tensor | None = None) -> tuple[Tensor, list[Tensor]]:
        """Images (B, C, H, W) in [-1, 1], and one feature map per path."""
        images, features = tapped(self._generator, self._paths, inputs, labels)
        return images, features if self.regressors is None else self.regressors(features)


def tapped(generator: Generator, paths: list[str], inputs: Tensor, labels: Tensor | None) -> tuple[Tensor, list[Tensor]]:
    """The images of a generator, in float32 under any autocast, and its features at `paths`."""
    output, features = tap(generator.network, paths, *generator.arguments(inputs, labels))
    return generator.images(output).float(), features


@dataclass
class GanNetworks(MovingAverage):
    """The teacher's generator, the student's generator, and its EMA.

    Attributes:
        student: a `StudentWithFeatures`, possibly wrapped for distributed training.
        average: the EMA, which is exported as the student.
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
    """The networks of a training that starts from `student`, in float32."""
    student = student.float().train().requires_grad_(True)
    average = copy.deepcopy(student).eval().requires_grad_(False)
    return GanNetworks(
        teacher,
        StudentWithFeatures(teacher.with_network(student), [hint.student_path for hint in hints], Regressors(hints)),
        teacher.with_network(average),
    )


def persistent_buffers(network: nn.Module) -> dict[str, Tensor]:
    """The buffers that are part of the state dict, by name."""
    names = network.state_dict().keys() - dict(network.named_parameters()).keys()
    return {name: buffer for name, buffer in network.named_buffers() if name in names}
