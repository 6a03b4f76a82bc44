"""The evaluation at the end of a run with a budget: the largest that fits, what it takes, and its execution."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import torch
from PIL import Image

from gendistill.assets import asset_path
from gendistill.data.encode import prepare_data, training_texts
from gendistill.diffusion.teacher import load_teacher
from gendistill.evaluation.evaluate import evaluate
from gendistill.evaluation.evaluate_student import GALLERY_IMAGES
from gendistill.evaluation.evaluation_config import EvaluationConfig
from gendistill.evaluation.evaluator import NUM, name_of
from gendistill.evaluation.student_report import StudentComparison
from gendistill.evaluation.teacher_fidelity import FIDELITY_IMAGES
from gendistill.evaluation.teacher_plans import FILE_NAME, TEACHER_SCALES, TEACHER_STEPS, calls_a_step, load_rows
from gendistill.methods import RunConfig
from gendistill.run.budget_probe import SCORED, Rates
from gendistill.run.budget_rules import MIN_EVALUATED
from gendistill.runtime.device import make_folder, usable_device
from gendistill.samplers import images_at_once, to_uint8

QUICK = ("fd", "clip_score")
FULL_SCORES = 25.0  # seconds of the further metrics of a row of 2,000 images, measured on one thread (15 to 22)
SLACK = 1.15  # of the time of an evaluation, which nothing can shorten once it runs
REPORT = 5.0  # seconds of a report with its curves
TEACHER_IMAGES = "teacher-images"


@dataclass(frozen=True)
class EvaluationSize:
    """An evaluation of a student, as large as there is time for.

    Attributes:
        num: images for each step count.
        full: whether all default metrics are computed, those of pairs with the teacher's images too, or the distance and the
            CLIP score alone.
        teacher: whether the figures of the teacher are those in its folder (`stored`), measured at all usual guidance scales
            (`full`), measured at that of the student (`distilled`), or left out (`none`).
    """

    num: int
    full: bool
    teacher: str

    def scales(self, config: RunConfig) -> Sequence[float] | None:
        """Guidance scales at which the teacher is measured, see `EvaluationConfig.teacher_scales`."""
        return {"full": None, "distilled": (config.guidance.scale,)}.get(self.teacher, ())

    def describe(self) -> str:
        teacher = {
            "stored": "with the stored figures of the teacher",
            "full": "with the teacher at all usual guidance scales",
            "distilled": "with the teacher at the guidance scale of the student",
            "none": "of the student alone",
        }
        metrics = "all metrics" if self.full else "the distance and the CLIP score"
        return f"{metrics} on {self.num:,} images, {teacher[self.teacher]}"


def evaluation_sizes(config: RunConfig) -> list[EvaluationSize]:
    """All evaluations of a student, the most informative first. Stored figures count for as many images as they are of."""
    if has_stored_figures(config):
        with_teacher = [EvaluationSize(NUM, True, "stored"), EvaluationSize(NUM, False, "stored")]
    else:
        with_teacher = [
            *(EvaluationSize(num, True, "full") for num in (NUM, NUM // 2)),
            *(EvaluationSize(num, full, "distilled") for num in (NUM, NUM // 2, MIN_EVALUATED) for full in (True, False)),
        ]
    return [*with_teacher, *(EvaluationSize(num, False, "none") for num in (NUM, NUM // 2, MIN_EVALUATED))]


def has_stored_figures(config: RunConfig) -> bool:
    """Whether the teacher's folder has figures that an evaluation of 2,000 images on this data may be compared with."""
    if (path := reference_of(config)) is None:
        return False
    try:
        protocol = load_rows(Path(asset_path(config.teacher)).expanduser() / FILE_NAME)[0].protocol
    except (OSError, ValueError, TypeError, LookupError):
        return False
    same_field = config.data.caption is None or str(config.data.caption) in (protocol.prompts or "")
    return (protocol.num_samples, protocol.reference) == (NUM, name_of(path)) and same_field


def reference_of(config: RunConfig) -> str | None:
    """The real images that a student is evaluated against; None where there are only prompts."""
    return config.validation_reference or config.data.path


def evaluation_seconds(size: EvaluationSize, rates: Rates, config: RunConfig, guided: bool) -> float:
    """The time that an evaluation is expected to take.

    Args:
        guided: whether the teacher has classifier-free guidance, two calls a step.
    """
    image = rates.decode + rates.features + rates.clip + rates.storing
    steps, guidance = config.steps, calls_a_step(config.guidance.scale) if guided else 1
    seconds = 2 * rates.opening + REPORT + len(steps) * rates.scores
    if size != evaluation_sizes(config)[-1]:
        seconds *= 2  # the smallest evaluation is made first
    seconds += size.num * (sum(steps) * rates.call + len(steps) * (image + rates.prompt))
    seconds += len(steps) * FULL_SCORES * size.num / SCORED * size.full
    long = TEACHER_STEPS * guidance * rates.call
    if size.full:
        seconds += FIDELITY_IMAGES * (long + image)
    if size.teacher != "none":
        seconds += GALLERY_IMAGES * (TEACHER_STEPS * 2 * rates.call + 10 * image)
    if size.teacher in ("full", "distilled"):
        rows = [(scale, count, calls) for scale, count, calls in rates.teacher_calls if _measured(scale, count, size, config)]
        seconds += size.num * sum(calls * rates.call + image for _, _, calls in rows) + len(rows) * rates.distance
    if reference_of(config) is None:
        seconds += rates.opening + min(config.data.num_synthetic, NUM) * (rates.decode + rates.features + rates.storing)
    return SLACK * seconds


def _measured(scale: float, count: int, size: EvaluationSize, config: RunConfig) -> bool:
    """Whether a row of the teacher is in an evaluation; every scale above 1 costs as much as any other."""
    if size.teacher == "full":
        return True
    distilled = 1.0 if config.guidance.scale == 1 else TEACHER_SCALES[1]
    return scale == distilled or (scale == 1 and count < TEACHER_STEPS) or scale not in TEACHER_SCALES


def evaluate_sized(size: EvaluationSize, config: RunConfig, student: Path, extractor: str, texts: bool) -> StudentComparison:
    """Evaluate the student of a run against its training images, or those of its teacher, into the run folder.

    Raises:
        TimeoutError: within `time_limit`, when the time is over.
    """
    run = Path(config.out).expanduser()
    reference, caption = reference_of(config), config.data.caption
    if reference is None:
        reference, caption = str(write_teacher_images(config, run / TEACHER_IMAGES)), None
    elif reference != config.data.path:
        caption = None
    options = EvaluationConfig(
        reference,
        caption=caption,
        num=size.num,
        metrics=None if size.full else QUICK if texts else QUICK[:1],
        extractor=extractor,
        cache=config.data.cache,
        out=run,
        device=config.device,
        teacher_scales=size.scales(config),
    )
    comparison = evaluate(str(student), options)
    assert isinstance(comparison, StudentComparison)
    return comparison


def write_teacher_images(config: RunConfig, folder: Path) -> Path:
    """Images that the teacher generated for training, 2,000 at most, with their prompts, to evaluate students against."""
    teacher = load_teacher(
        config.teacher, config=config.teacher_config, size=config.data.size, device=usable_device(config.device)
    )
    data = prepare_data(config.data, teacher, config.seed)
    prompts, lines = training_texts(config.data, teacher, data, config.seed), []
    make_folder(folder)
    for rows in torch.arange(min(len(data), NUM)).split(images_at_once(max(teacher.size))):
        latents = data.cache.rows(rows)["moments"].float().chunk(2, dim=1)[0]
        images = to_uint8(teacher.codec.decode(latents) / 2 + 0.5).permute(0, 2, 3, 1).cpu().numpy()
        for number, image in zip(rows.tolist(), images, strict=True):
            Image.fromarray(image).save(folder / f"{number:06d}.png")
            lines.append(json.dumps({"file_name": f"{number:06d}.png", "text": prompts[number]}))
    if any(prompts):
        (folder / "metadata.jsonl").write_text("\n".join(lines) + "\n")
    return folder


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """A block that ends after `seconds` with a TimeoutError, in the main thread of a system that has timers."""
    if not hasattr(signal, "setitimer") or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(_: int, __: FrameType | None) -> None:
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, max(seconds, 0.01))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
