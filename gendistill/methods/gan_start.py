"""The initial student of a GAN: the pruned teacher, or a class of the user."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gendistill.data.gan_batches import ImageData, NoData
from gendistill.gan.gan_folder import Gan, NetworkSource
from gendistill.gan.generator import Generator
from gendistill.networks import counting
from gendistill.networks.classes import build, read_arguments
from gendistill.networks.pruning import pruned_architecture
from gendistill.networks.pruning.compress_config import CompressConfig
from gendistill.networks.pruning.depth import blocks_to_keep, blocks_to_remove, residual_blocks
from gendistill.networks.pruning.prune import Compressed, compress, recalibrate
from gendistill.networks.state_dicts import load_weights, read_state_dict
from gendistill.runtime.random import PerSampleRandom

MEASURED = 8  # inputs with which the importance of blocks is measured
RECALIBRATION = 16  # batches of the recalibration of batch norms


@dataclass(frozen=True)
class Start(Compressed):
    """A student before its first step, with its cost and its teacher's.

    Attributes:
        source: class and arguments that rebuild the network.
    """

    source: NetworkSource

    def describe(self) -> str:
        ratio = self.teacher_macs / self.macs
        return (
            f"{self.macs / 1e6:,.1f} M multiply-accumulates an image (the teacher's {self.teacher_macs / 1e6:,.1f} M, "
            f"{ratio:.2f} times), {self.parameters / 1e6:,.2f} M parameters (of {self.teacher_parameters / 1e6:,.2f} M)"
        )


def start_student(
    teacher: Gan,
    config: CompressConfig,
    data: ImageData | NoData,
    seed: int,
    importance: str = "magnitude",
    tried: Callable[[int], None] | None = None,
) -> Start:
    """The initial student by the settings `compress`, on the CPU in float32, with recalibrated batch norms.

    Args:
        seed: seed of random choices, see `compress`.
        importance: importance of channels; `random` for a second student, which should differ from the first one.
        tried: called with the number of pruned networks that were tried.

    Raises:
        ValueError: the settings do not define the student's size, the teacher cannot be pruned to it, or the user's class
            generates images of another shape than the teacher.
    """
    if config.student is not None:
        return _own_class(teacher, config)
    if config.factor is None and config.params is None and config.macs is None:
        raise ValueError("compress: expects --compress 4, --student-params, --student-macs or --student module:Class")
    generator, source = teacher.generator, teacher.generator_source
    network = generator.network.cpu()
    removed = _removed_blocks(generator.with_network(network), config, data, tried)
    pruned = compress(
        network,
        generator.example(),
        factor=config.factor,
        params=config.params,
        macs=config.macs,
        seed=seed,
        importance=importance,  # type: ignore[arg-type]
        keep=config.keep,
        depthwise=config.depthwise,
        removed=removed,
        tried=tried,
    )
    recalibrate(pruned.network, _batches(generator, data, seed))
    architecture = pruned_architecture.record(pruned.network)
    return Start(**vars(pruned), source=NetworkSource(source.class_path, source.arguments, architecture))


def _removed_blocks(
    generator: Generator, config: CompressConfig, data: ImageData | NoData, tried: Callable[[int], None] | None
) -> dict[str, float]:
    """The residual blocks to remove by `compress.depth`, see `pruning.depth.blocks_to_remove`.

    They do not depend on the seed of the run: a peer has the same layers, which are matched by their paths.

    Raises:
        ValueError: the network has no residual blocks of which a fraction could be removed.
    """
    if config.depth == 0:
        return {}
    blocks = [
        path
        for path in residual_blocks(generator.network, generator.example())
        if not any(f"{kept}.".startswith(f"{path}.") or path.startswith(f"{kept}.") for kept in config.keep)
    ]
    if config.depth != "auto" and len(blocks) < 2:
        found = "1 residual block that runs" if blocks else "0 residual blocks that run"
        raise ValueError(
            f"compress.depth {config.depth:g}: {type(generator.network).__name__} has {found} once with equal shapes of input "
            "and output, and is not in compress.keep; expects 2 or more, or compress.depth=0"
        )
    keep = blocks_to_keep(len(blocks), config.depth, _factor(generator, config))
    if keep == len(blocks):
        return {}
    batches = [tuple(tensor[:MEASURED] for tensor in batch) for batch in _batches(generator, data, 0, 1)]
    return blocks_to_remove(generator.network, blocks, keep, batches, tried)


def _factor(generator: Generator, config: CompressConfig) -> float:
    """The largest factor of the compression: of multiply-accumulates or of parameters."""
    if config.factor is not None:
        return config.factor
    factors = [1.0]
    if config.macs is not None:
        factors.append(counting.macs(generator.network, generator.example()) / config.macs)
    if config.params is not None:
        factors.append(counting.parameters(generator.network) / config.params)
    return max(factors)


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
    except Exception as error:  # a network of the user may raise any error
        reason = str(error).strip().splitlines()[0]
        raise ValueError(f"compress.student {config.student}: cannot be called as its teacher is: {reason}") from error
    if shape != teacher.generator.spec.output_shape:
        raise ValueError(
            f"compress.student {config.student}: generates {_by(shape)}, its teacher {_by(teacher.generator.spec.output_shape)}"
        )
    sample = teacher.generator.example()
    macs = counting.macs(network, sample), counting.macs(teacher.generator.network, sample)
    parameters = counting.parameters(network), counting.parameters(teacher.generator.network)
    counts = (macs[0], parameters[0], macs[1], parameters[1])
    return Start(network, *counts, {}, NetworkSource(config.student, arguments))


def _batches(generator: Generator, data: ImageData | NoData, seed: int, count: int = RECALIBRATION) -> list[tuple[Tensor, ...]]:
    """Some batches of inputs of the generator."""
    batches: list[tuple[Tensor, ...]] = []
    for step in range(count):
        random = PerSampleRandom(seed, step, 0, 32)
        batch = data.batch(data.rows_of_step(seed, step, 32), random)
        inputs = random.normal(generator.spec.input_shape) if batch.inputs is None else batch.inputs
        classes = generator.spec.num_classes
        labels = batch.labels if batch.labels is not None else (random.uniform() * max(classes, 1)).long()
        batches.append(generator.arguments(inputs, labels))
    return batches


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
