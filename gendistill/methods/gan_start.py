"""What a student GAN starts as: the teacher with the channels that matter most, or a class of the user's own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gendistill.data.gan_batches import ImageData, NoData
from gendistill.gan.gan_folder import Gan, NetworkSource
from gendistill.gan.generator import Generator
from gendistill.networks import counting
from gendistill.networks.classes import build, read_arguments
from gendistill.networks.pruning import pruned_architecture as slim
from gendistill.networks.pruning.compress_config import CompressConfig
from gendistill.networks.pruning.prune import Compressed, compress, recalibrate
from gendistill.networks.state_dicts import load_weights, read_state_dict
from gendistill.runtime.random import PerSampleRandom

RECALIBRATION = 16  # batches


@dataclass(frozen=True)
class Start(Compressed):
    """A student before its first step, beside its teacher.

    Attributes:
        source: how its network is built again.
    """

    source: NetworkSource

    def describe(self) -> str:
        times = self.teacher_macs / self.macs
        return (
            f"{self.macs / 1e6:,.1f} M multiply-accumulates an image (the teacher's {self.teacher_macs / 1e6:,.1f} M, "
            f"{times:.2f} times), {self.parameters / 1e6:,.2f} M parameters (of {self.teacher_parameters / 1e6:,.2f} M)"
        )


def start_student(
    teacher: Gan, config: CompressConfig, data: ImageData | NoData, seed: int, importance: str = "magnitude"
) -> Start:
    """The network that a config asks for, on the CPU in float32, with batch norms that fit its channels.

    Args:
        seed: of what is random, see `compress`.
        importance: `random` is for a second student, which should not be the first one's twin.

    Raises:
        ValueError: the config says nothing of the student's size, the teacher cannot be pruned so far, or the class does not
            generate what the teacher generates.
    """
    if config.student is not None:
        return _own_class(teacher, config)
    if config.factor is None and config.params is None and config.macs is None:
        raise ValueError("compress: expects --compress 4, --student-params, --student-macs or --student module:Class")
    generator, source = teacher.generator, teacher.generator_source
    made = compress(
        generator.network.cpu(),
        generator.example(),
        factor=config.factor,
        params=config.params,
        macs=config.macs,
        seed=seed,
        importance=importance,  # type: ignore[arg-type]
        keep=config.keep,
        depthwise=config.depthwise,
    )
    recalibrate(made.network, _batches(generator, data, seed))
    return Start(**vars(made), source=NetworkSource(source.class_path, source.arguments, slim.record(made.network)))


def _own_class(teacher: Gan, config: CompressConfig) -> Start:
    assert config.student is not None
    arguments = read_arguments(config.student_config, "compress.student_config")
    network = build(config.student, arguments, "compress.student")
    if config.student_weights is not None:
        where = f"compress.student_weights {config.student_weights}"
        load_weights(network, read_state_dict(config.student_weights, "compress.student_weights"), where)
    student, example = teacher.generator.with_network(network.eval()), teacher.generator.example(2)
    try:
        with torch.no_grad():
            shape = tuple(student(*example).shape[1:])
    except Exception as error:  # whatever a stranger's network raises
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"compress.student {config.student}: cannot be called as its teacher is: {reason}") from error
    if shape != teacher.generator.spec.output_shape:
        raise ValueError(
            f"compress.student {config.student}: generates {_by(shape)}, its teacher {_by(teacher.generator.spec.output_shape)}"
        )
    one = teacher.generator.example()
    macs = counting.macs(network, one), counting.macs(teacher.generator.network, one)
    parameters = counting.parameters(network), counting.parameters(teacher.generator.network)
    counts = (macs[0], parameters[0], macs[1], parameters[1])
    return Start(network, *counts, {}, NetworkSource(config.student, arguments))


def _batches(generator: Generator, data: ImageData | NoData, seed: int) -> list[tuple[Tensor, ...]]:
    """What goes in, some batches of it."""
    batches: list[tuple[Tensor, ...]] = []
    for step in range(RECALIBRATION):
        random = PerSampleRandom(seed, step, 0, 32)
        batch = data.batch(data.rows_of_step(seed, step, 32), random)
        inputs = random.normal(generator.spec.input_shape) if batch.inputs is None else batch.inputs
        classes = generator.spec.num_classes
        labels = batch.labels if batch.labels is not None else (random.uniform() * max(classes, 1)).long()
        batches.append((inputs, labels) if classes else (inputs,))
    return batches


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
