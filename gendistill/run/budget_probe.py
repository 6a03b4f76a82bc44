"""The speed of a teacher on this machine, for `distill --budget`: network calls, optimizer steps, images and scores.

A probe opens the teacher and times each part of a run on invented inputs of the real shapes. It is kept for an hour, so that a
dry run and the run after it plan with the same numbers.
"""

from __future__ import annotations

import hashlib
import json
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter
from torch import Tensor, nn

from gendistill.data.batches import Batch, Trajectories
from gendistill.data.cached import image_source
from gendistill.data.encode import training_prompts
from gendistill.diffusion.teacher import Teacher, load_teacher
from gendistill.evaluation.default_extractor import chosen_extractor, is_embedded, prompts_of
from gendistill.evaluation.evaluator import TINY_CLIP
from gendistill.evaluation.teacher_plans import calls_a_step, teacher_plans
from gendistill.methods import RunConfig, denoiser_stages, recipe_of
from gendistill.methods.denoiser_method import DenoiserContext
from gendistill.metrics.cost.components import synchronise
from gendistill.metrics.distances.clip_score import load_scorer
from gendistill.metrics.features.feature_extractor import extract, load_extractor
from gendistill.metrics.features.gaussian import gaussian_statistics
from gendistill.metrics.measure import measure
from gendistill.metrics.metric import ReferenceFeatures, SampleFeatures
from gendistill.run.denoisers import fitting
from gendistill.runtime.device import make_folder, usable_device
from gendistill.runtime.files import atomic_write
from gendistill.runtime.random import PerSampleRandom
from gendistill.runtime.store import Store, StoredPart
from gendistill.samplers import FewStepSampler, images_at_once, to_uint8
from gendistill.samplers.conditioning import Conditioning
from gendistill.samplers.offload.live_memory import bytes_of
from gendistill.training.preparation import prepare
from gendistill.training.state import TrainState
from gendistill.training.trainer import Trainer

KEPT = 3600  # seconds
STEPS, MAX_SECONDS = 4, 30.0  # of the probe of a method; the first step is not counted
ROWS = 16  # of such a step, at most
EXAMPLES = 16  # images of the training data that are read
SCORED = 2000


@dataclass(frozen=True)
class Rates:
    """Seconds that the parts of a run take on this machine, and what it found of the teacher.

    Attributes:
        seconds: from the start of the command to the end of the probe.
        opening: to open the teacher.
        call: a network call for one image, without gradients.
        steps: an optimizer step for one sample, by method.
        decode, encode: decoding and encoding of one image.
        prompt: encoding of one prompt.
        features, clip: features of one image for the distance, and its CLIP embedding with that of its prompt; 0 for prompts
            that are no texts.
        storing: writing an image to the cache of an evaluation and reading it twice.
        distance, scores: a distance of 2,000 images, without and with its interval and that of the CLIP score.
        read: reading one training image.
        images: number of training images; 0 where there are prompts alone.
        bytes: of the teacher's pipeline.
        solvers: those that the student can be sampled with.
        teacher_calls: calls for one image of each row of the teacher in an evaluation, by guidance scale and step count.
        extractor: name of the feature network of validations and of the evaluation.
    """

    seconds: float
    opening: float
    call: float
    steps: dict[str, float]
    decode: float
    encode: float
    prompt: float
    features: float
    clip: float
    storing: float
    distance: float
    scores: float
    read: float
    images: int
    bytes: int
    solvers: list[str]
    teacher_calls: list[tuple[float, int, int]]
    extractor: str
    texts: bool


def probe(configs: list[RunConfig], started: float) -> Rates:
    """The rates of a teacher with the settings of each of several methods, measured within the last hour or now.

    Args:
        started: `time.monotonic()` at the start of the command.

    Raises:
        ValueError: the teacher or the data cannot be opened.
    """
    file = Path(configs[0].data.cache) / "probes" / f"{_key(configs)}.json"
    try:
        if time.time() - file.stat().st_mtime < KEPT:
            return TypeAdapter(Rates).validate_python(json.loads(file.read_text()))
    except (OSError, ValueError):
        pass
    rates = measured_rates(configs, started)
    make_folder(file.parent)
    with atomic_write(file) as temporary:
        temporary.write_text(json.dumps(asdict(rates)) + "\n")
    return rates


def _key(configs: list[RunConfig]) -> str:
    """A hash of everything that the rates depend on, as far as it is known without a measurement."""
    machine = [platform.node(), torch.__version__, torch.get_num_threads()]
    parts = [{**config.model_dump(mode="json"), "out": ""} for config in configs]
    return hashlib.sha256(json.dumps([machine, parts]).encode()).hexdigest()[:16]


def measured_rates(configs: list[RunConfig], started: float) -> Rates:
    """Measure the rates; see `probe`."""
    config = configs[0]
    device = usable_device(config.device)
    read, images = _reading(config)
    measured, examples = _of_teacher(config, device)
    steps = {each.method: _step_seconds(each, device, examples) for each in configs}
    return Rates(seconds=time.monotonic() - started, steps=steps, read=read, images=images, **measured)


def _of_teacher(config: RunConfig, device: str) -> tuple[dict[str, Any], Conditioning]:
    """The rates of the teacher without training, of its images and of their scores; and the conditions of a prompt."""
    teacher, opening = _opened(config, device)
    if config.data.path is None:
        training_prompts(config.data, teacher)  # raises ValueError where there are none
    sampler, size, codec, denoiser = FewStepSampler(teacher.pipeline), teacher.size, teacher.codec, teacher.denoiser
    rows = images_at_once(max(size))
    prompts = [(teacher.own_prompts or ["a prompt"])[0]] * rows
    with torch.no_grad():
        conditioning = teacher.encode_prompts(prompts).to(device)
        prompt = _seconds(lambda: teacher.encode_prompts(prompts), device, 2) / rows
        latents = torch.randn(rows, *codec.latent_shape(size), device=device)
        t = torch.full((rows,), denoiser.schedule.num_train_timesteps // 2, device=device)
        call = _seconds(lambda: denoiser(latents, t, conditioning), device, 3) / rows
        decode = _seconds(lambda: codec.decode(latents), device, 2) / rows
        decoded = codec.decode(latents).float()
        encode = _seconds(lambda: codec.moments(decoded), device, 2) / rows
    embedded = is_embedded(size, prompts_of(sampler), config.validation_reference or config.data.path)
    name, _ = chosen_extractor(config.validation_extractor, embedded=embedded)
    extractor, images = load_extractor(name, device), to_uint8(decoded / 2 + 0.5).cpu()
    clip = 0.0
    if teacher.family.texts:
        scorer = load_scorer(TINY_CLIP, device)
        clip = _seconds(lambda: (extract(scorer.image_extractor, images), scorer.embed_texts(prompts)), device, 2) / rows
    distance, scores = _scoring(extract(extractor, images[:1]).shape[1])
    rates = {
        "opening": opening,
        "call": call,
        "decode": decode,
        "encode": encode,
        "prompt": prompt,
        "features": _seconds(lambda: extract(extractor, images), device, 2) / rows,
        "clip": clip,
        "storing": _storing(images[0]),
        "distance": distance,
        "scores": scores,
        "bytes": _bytes(teacher.pipeline),
        "solvers": DenoiserContext(config, teacher.family, denoiser, Conditioning()).solvers,
        "teacher_calls": [(scale, steps, steps * calls_a_step(scale)) for _, steps, scale in teacher_plans(sampler)],
        "extractor": name,
        "texts": teacher.family.texts,
    }
    return rates, conditioning.to("cpu")


def _opened(config: RunConfig, device: str) -> tuple[Teacher, float]:
    started = time.perf_counter()
    teacher = load_teacher(
        config.teacher,
        config=config.teacher_config,
        revision=config.teacher_revision,
        size=config.data.size,
        dtype=getattr(torch, config.dtype),
        device=device,
        quantization=config.lora.quantization,
    )
    return teacher, time.perf_counter() - started


def _reading(config: RunConfig) -> tuple[float, int]:
    """Seconds to read a training image, and the number of images; zeros without images."""
    if config.data.path is None:
        return 0.0, 0
    started = time.perf_counter()
    source = image_source(config.data, config.seed)
    entries = list(source.entries())
    opened = time.perf_counter()
    count = sum(1 for _ in islice(source.decoded(entries[:EXAMPLES], []), EXAMPLES))
    return (time.perf_counter() - opened) / max(count, 1) + (opened - started) / len(entries), len(entries)


def _bytes(pipeline: Any) -> int:
    return bytes_of([part for part in pipeline.components.values() if isinstance(part, nn.Module)])


def _storing(image: Tensor) -> float:
    """Seconds to write an image uint8 (3, H, W) to a cache of its own part, and to read it for two networks."""
    with tempfile.TemporaryDirectory() as folder:
        store, started = Store(Path(folder), {"probe": 0}, "images"), time.perf_counter()
        for number in range(EXAMPLES):
            store.write(str(number), StoredPart({"image": {"image": image[None]}}, notes={"images": 1}))
            for _ in range(2):
                store.read(str(number))
        return (time.perf_counter() - started) / EXAMPLES


def _scoring(width: int) -> tuple[float, float]:
    """Seconds of a distance between features (2000, width), and of the scores with intervals of a row of an evaluation."""
    samples = SampleFeatures(torch.randn(SCORED, width).numpy(), None)
    reference = ReferenceFeatures(gaussian_statistics(torch.randn(SCORED, width)))
    seconds = []
    for intervals in (False, True):
        started = time.perf_counter()
        measure(samples, reference, ("fd",), fd="fd", clip=None, intervals=intervals, seed=0, skip_missing=True)
        seconds.append(time.perf_counter() - started)
    return seconds[0], seconds[1]


class ProbeData:
    """Training data of invented latents under the conditions of one prompt."""

    def __init__(self, shape: tuple[int, ...], examples: Conditioning, trajectory_steps: int, timesteps: Tensor) -> None:
        self.shape, self.examples, self.trajectory_steps, self.timesteps = shape, examples, trajectory_steps, timesteps

    def __len__(self) -> int:
        return ROWS

    def rows_of_step(self, seed: int, step: int, batch_size: int) -> Tensor:
        return torch.zeros(batch_size, dtype=torch.long)

    def batch(self, rows: Tensor, random: PerSampleRandom, device: torch.device | str = "cpu") -> Batch:
        count, conditioning = len(rows), self.examples[rows].to(device)
        latents = torch.randn(count, *self.shape, device=device)
        points = torch.randn(count, self.trajectory_steps + 1, *self.shape, device=device)
        return Batch(latents, conditioning, Trajectories(points, self.timesteps.to(device), conditioning))

    def summary(self) -> dict[str, Any]:
        return {}


def _step_seconds(config: RunConfig, device: str, examples: Conditioning) -> float:
    """Seconds of an optimizer step of a method for one sample: the median of a few steps of the run's own trainer."""
    teacher, _ = _opened(config, device)
    config = fitting(config, teacher.family, type(teacher.pipeline).__name__)
    recipe_of(config).check(config, teacher)
    context = DenoiserContext(config, teacher.family, teacher.denoiser, teacher.unconditional(), None, teacher)
    stage = next(denoiser_stages(context))
    settings, count = config.trainer, config.align.trajectory_steps
    rows = min(ROWS, settings.batch_size // settings.gradient_accumulation_steps)
    settings = settings.updated({"batch_size": rows, "gradient_accumulation_steps": 1, "trackers": []}, "trainer")
    times = torch.linspace(teacher.denoiser.schedule.num_train_timesteps - 1, 0, count + 1).long()
    data = ProbeData(teacher.codec.latent_shape(teacher.size), examples, count, times)
    seconds: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(stage.method, data, settings, Path(folder), seed=0, cpu=torch.device(device).type == "cpu")
        step = trainer.stepper(prepare(stage.method, settings, trainer.accelerator))
        state, began = TrainState(), time.perf_counter()
        while len(seconds) < STEPS and time.perf_counter() - began < MAX_SECONDS:
            seconds.append(_once(lambda: step(replace(state, step=len(seconds)), settings.learning_rate / 1e6), device))
            stage.method.after_step(len(seconds), set())
    counted = sorted(seconds[1:] or seconds)
    return counted[len(counted) // 2] / rows


def _once(work: Callable[[], Any], device: str) -> float:
    started = time.perf_counter()
    work()
    synchronise(torch.device(device))
    return time.perf_counter() - started


def _seconds(work: Callable[[], Any], device: str, times: int) -> float:
    """The mean time of some repetitions, after one that is not counted."""
    work()
    return sum(_once(work, device) for _ in range(times)) / times
