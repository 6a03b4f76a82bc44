"""`gendistill evaluate` for GANs: a student compared with its teacher for the same noise, or a teacher alone."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from gendistill.evaluation.evaluation_config import EvaluationConfig
from gendistill.evaluation.evaluator import Evaluator, build_evaluator
from gendistill.evaluation.extraction import as_tensor
from gendistill.evaluation.generator_report import GeneratorComparison, GeneratorImages, write_report
from gendistill.evaluation.report_folder import REPORT, report_folder
from gendistill.evaluation.teacher_fidelity import FIDELITY_IMAGES, lpips_for, wants_fidelity, with_fidelity
from gendistill.evaluation.teacher_plans import FILE_NAME, save_rows
from gendistill.gan.generator_sampler import GeneratorSampler
from gendistill.metrics.cost.components import flops_by_component
from gendistill.metrics.cost.interleaved import SideBySide, time_side_by_side
from gendistill.metrics.distances.uncertainty import sample_size_warning
from gendistill.metrics.pairs.paired import paired_test_frechet
from gendistill.metrics.protocol import Evaluation
from gendistill.runtime.device import usable_device
from gendistill.runtime.files import atomic_write
from gendistill.runtime.progress import advancing_bar
from gendistill.samplers import to_uint8
from gendistill.sampling.load import Opening, gan_folder, input_prompts, open_sampler, open_teacher_of

GALLERY_IMAGES = 64
STRIPS, STRIP_IMAGES = 8, 8
BATCH_SIZES = (1, 16)
STUDENT = "student"
ROUNDS, MIN_SECONDS = 15, 3.0

Samplers = dict[str, GeneratorSampler]


def evaluate_generator(model: str, config: EvaluationConfig) -> GeneratorComparison:
    """Evaluate a GAN's student and its teacher; write evaluation.json and report.html to `config.out`.

    Both generate from the same noise and classes, and are timed alternately. A model that is not a student is evaluated as a
    teacher, without a report. The default caption field is the one that names the model's classes.

    Args:
        model: a GAN folder, or the folder of a run that exported one.

    Raises:
        ValueError: a model, the reference, a metric or a metric network cannot be used.
    """
    folder = gan_folder(model)
    assert folder is not None
    if config.out is None and not Path(model).expanduser().is_dir():
        raise ValueError(f"out: model {model} is no folder to write to; expects --out FOLDER")
    with report_folder(config.out or folder, (FILE_NAME, REPORT)) as out:
        return _evaluate(folder, config, out)


def _evaluate(folder: Path, config: EvaluationConfig, out: Path) -> GeneratorComparison:
    device = usable_device(config.device)
    samplers = _open(folder, config.teacher, device)
    for sampler in samplers.values():
        for count in config.steps or ():
            sampler.require_steps(count)
    first = next(iter(samplers.values()))
    config = dataclasses.replace(config, device=device)
    keep = not first.from_images  # the cache key has the path of an input image, not its contents
    evaluator = build_evaluator(config, samplers.values(), keep=keep)
    evaluator = _with_inputs(evaluator, first, config.inputs)
    with advancing_bar("sampling", len(evaluator.prompts) * len(samplers)) as progress:
        evaluated = {
            name: evaluator.evaluate(sampler, model=name, steps=1, guidance_scale=1.0, progress=progress)
            for name, sampler in samplers.items()
        }
    times = _times(samplers, evaluator, device)
    rows = [_with_costs(evaluated[name].evaluation, samplers[name], evaluator, times) for name in samplers]
    warning = sample_size_warning(len(evaluator.prompts), evaluator.extractor.dim)
    warnings, requested = [warning] if warning else [], evaluator.requested
    files = [out / FILE_NAME, out / REPORT]
    if len(rows) == 1:
        save_rows(rows, files[0])
        return GeneratorComparison([], rows, times, None, warnings, files[:1], requested)
    features = [as_tensor(evaluated[row.model].images.features) for row in rows]
    if wants_fidelity(evaluator):
        few, lpips = evaluator.first(FIDELITY_IMAGES), lpips_for(evaluator, device)
        teacher_images, images = (few.generate(sampler, 1, 1.0) for sampler in samplers.values())
        rows[1] = with_fidelity(rows[1], images, teacher_images, features[1], features[0], evaluator, lpips)
    test = paired_test_frechet(features[1], features[0], evaluator.reference.statistics, seed=evaluator.seed)
    comparison = GeneratorComparison(rows[1:], rows[:1], times, test, warnings, files, requested)
    with atomic_write(files[0]) as temporary:
        temporary.write_text(comparison.to_json() + "\n")
    write_report(files[1], comparison, _images(samplers, evaluator), samplers[STUDENT].student or {})
    return comparison


def _open(folder: Path, teacher: str | None, device: str) -> Samplers:
    """Samplers by name: the teacher first, named after its folder.

    Raises:
        ValueError: the student's teacher cannot be found, or differs in classes or image shape.
    """
    student = open_sampler(folder, Opening(device))
    assert isinstance(student, GeneratorSampler)
    if student.student is None and teacher is None:
        return {folder.resolve().name: student}
    teacher_name = teacher or str((student.student or {}).get("teacher"))
    teacher_sampler = open_teacher_of(student, teacher, device=device)
    for field in ("kind", "output_shape", "input_shape", "num_classes"):
        student_value, teacher_value = (getattr(model.generator.spec, field) for model in (student, teacher_sampler))
        if student_value != teacher_value:
            raise ValueError(
                f"teacher {teacher_name}: its {field} is {teacher_value} and the student's {student_value}; "
                "expects the student's own teacher"
            )
    name = (gan_folder(teacher_name) or Path(teacher_name)).resolve().name
    return {"teacher" if name == STUDENT else name: teacher_sampler, STUDENT: student}


def _with_inputs(evaluator: Evaluator, sampler: GeneratorSampler, inputs: Path | None) -> Evaluator:
    """The evaluator with input images as prompts, in equal numbers, for a generator that translates images."""
    if inputs is None and not sampler.from_images:
        return evaluator
    if inputs is None:
        raise ValueError("--input: expects the images that the generator is to translate")
    paths = input_prompts(sampler, inputs)
    prompts = [paths[number % len(paths)] for number in range(len(evaluator.prompts))]
    evaluator = evaluator.with_prompts(prompts, evaluator.seeds)
    return dataclasses.replace(evaluator, prompt_source=f"{len(prompts)} of the images of {inputs.name}")


def _batch_generator(sampler: GeneratorSampler, evaluator: Evaluator) -> Callable[[int], None]:
    """A function that generates one batch of a given size."""

    def generate(count: int) -> None:
        prompts = [evaluator.prompts[number % len(evaluator.prompts)] for number in range(count)]
        for _ in sampler.images(prompts, range(count), batch_size=count):
            pass

    return generate


def _times(samplers: Samplers, evaluator: Evaluator, device: str) -> list[SideBySide]:
    generators = {name: _batch_generator(sampler, evaluator) for name, sampler in samplers.items()}
    times = []
    with advancing_bar("timing side by side", len(BATCH_SIZES)) as progress:
        for size in BATCH_SIZES:
            times.append(time_side_by_side(generators, size, rounds=ROUNDS, min_seconds=MIN_SECONDS, device=device))
            progress(1)
    return times


def _with_costs(row: Evaluation, sampler: GeneratorSampler, evaluator: Evaluator, times: list[SideBySide]) -> Evaluation:
    """The row with multiply-accumulates per image, parameters, and seconds per image by batch size."""
    network = sampler.generator.network
    flops = sum(flops_by_component(lambda: _batch_generator(sampler, evaluator)(1), sampler.components()).values())
    costs = {"macs": flops / 2, "parameters": float(sum(parameter.numel() for parameter in network.parameters()))}
    costs |= {f"seconds_by_{timing.batch_size}": timing.seconds_per_image(row.model) for timing in times}
    return dataclasses.replace(row, costs=costs)


def _images(samplers: Samplers, evaluator: Evaluator) -> GeneratorImages:
    """Grids of both models for the same noise, and strips of interpolations between the same noises."""
    few, first = evaluator.first(GALLERY_IMAGES), next(iter(samplers.values()))
    captions = [] if first.own_prompts == [""] else few.prompts
    grids = {name: few.generate(sampler, 1, 1.0) for name, sampler in samplers.items()}
    if first.from_images:
        return GeneratorImages(captions, grids, [], {})
    classes = list(dict.fromkeys(captions)) or [""]
    rows = [classes[number % len(classes)] for number in range(STRIPS)]
    ends = [(evaluator.seeds[0] + 2 * number, evaluator.seeds[0] + 2 * number + 1) for number in range(STRIPS)]
    strips = {name: to_uint8(sampler.strips(rows, ends, STRIP_IMAGES)).cpu() for name, sampler in samplers.items()}
    return GeneratorImages(captions, grids, rows, {name: images.flatten(0, 1) for name, images in strips.items()})
