"""`gendistill evaluate` of a GAN: a student beside its teacher at the same noise, or a teacher by itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path

from gendistill.evaluation.evaluation_config import EvaluationConfig
from gendistill.evaluation.extraction import as_tensor
from gendistill.evaluation.generator_report import GeneratorComparison, GeneratorImages, write_report
from gendistill.evaluation.judge import Judge, build_judge
from gendistill.evaluation.teacher_fidelity import FIDELITY_IMAGES, lpips_for, wants_fidelity, with_fidelity
from gendistill.evaluation.teacher_plans import FILE_NAME, save_rows
from gendistill.gan.generator_sampler import GeneratorSampler
from gendistill.metrics.cost.components import flops_by_component
from gendistill.metrics.cost.interleaved import SideBySide, time_side_by_side
from gendistill.metrics.distances.uncertainty import sample_size_warning
from gendistill.metrics.pairs.paired import paired_test_frechet
from gendistill.metrics.protocol import Evaluation
from gendistill.runtime.device import make_folder, usable_device
from gendistill.runtime.files import written_aside
from gendistill.runtime.progress import advancing_bar
from gendistill.samplers import to_uint8
from gendistill.sampling.load import Opening, gan_folder, input_prompts, open_sampler, open_teacher_of

GALLERY_PICTURES = 64
STRIPS, STRIP_PICTURES = 8, 8
BATCH_SIZES = (1, 16)
STUDENT = "student"
ROUNDS, LEAST_SECONDS = 15, 3.0

Samplers = dict[str, GeneratorSampler]


def evaluate_generator(model: str, config: EvaluationConfig) -> GeneratorComparison:
    """Judge a GAN's student beside its teacher; write evaluation.json and report.html to `config.out`.

    Both draw from the same noise of the same classes, and are timed turn and turn about. A model that is no student is taken
    as a teacher: its figures are made and written to evaluation.json. Without a caption field, the one that fits is taken.

    Args:
        model: a GAN folder, or a run that left one.

    Raises:
        ValueError: a model, the reference, a metric or a metric network cannot be used.
    """
    folder = gan_folder(model)
    assert folder is not None
    if config.out is None and not Path(model).expanduser().is_dir():
        raise ValueError(f"out: model {model} is no folder to write to; takes --out FOLDER")
    device, place = usable_device(config.device), make_folder(config.out or folder)
    samplers = _open(folder, config.teacher, device)
    for sampler in samplers.values():
        for count in config.steps or ():
            sampler.require_steps(count)
    first = next(iter(samplers.values()))
    config = dataclasses.replace(config, device=device)
    judge = build_judge(config, samplers.values(), keep=not first.of_pictures)  # an input may change, its path does not say so
    judge = _with_inputs(judge, first, config.inputs)
    with advancing_bar("drawing", len(judge.prompts) * len(samplers)) as progress:
        judged = {
            name: judge.judge(sampler, model=name, steps=1, guidance_scale=1.0, progress=progress)
            for name, sampler in samplers.items()
        }
    times = _times(samplers, judge, device)
    rows = [_with_costs(judged[name].evaluation, samplers[name], judge, times) for name in samplers]
    warning = sample_size_warning(len(judge.prompts), judge.extractor.dim)
    warnings, asked = [warning] if warning else [], judge.requested
    files = [place / FILE_NAME, place / "report.html"]
    if len(rows) == 1:
        save_rows(rows, files[0])
        return GeneratorComparison([], rows, times, None, warnings, files[:1], asked)
    features = [as_tensor(judged[row.model].pictures.features) for row in rows]
    if wants_fidelity(judge):
        few, lpips = judge.first(FIDELITY_IMAGES), lpips_for(judge, device)
        theirs, ours = (few.draw(sampler, 1, 1.0) for sampler in samplers.values())
        rows[1] = with_fidelity(rows[1], ours, theirs, features[1], features[0], judge, lpips)
    test = paired_test_frechet(features[1], features[0], judge.reference.statistics, seed=judge.seed)
    comparison = GeneratorComparison(rows[1:], rows[:1], times, test, warnings, files, asked)
    with written_aside(files[0]) as aside:
        aside.write_text(comparison.to_json() + "\n")
    write_report(files[1], comparison, _pictures(samplers, judge), samplers[STUDENT].student or {})
    return comparison


def _open(folder: Path, teacher: str | None, device: str) -> Samplers:
    """By name, the teacher first and named after its folder.

    Raises:
        ValueError: the student's teacher is nowhere, or of other classes or pictures.
    """
    student = open_sampler(folder, Opening(device))
    assert isinstance(student, GeneratorSampler)
    if student.student is None and teacher is None:
        return {folder.resolve().name: student}
    named = teacher or str((student.student or {}).get("teacher"))
    of_teacher = open_teacher_of(student, teacher, device=device)
    for what in ("kind", "output_shape", "input_shape", "num_classes"):
        ours, theirs = (getattr(of.generator.spec, what) for of in (student, of_teacher))
        if ours != theirs:
            raise ValueError(
                f"teacher {named}: its {what} is {theirs} and the student's {ours}; takes the student's own teacher"
            )
    name = (gan_folder(named) or Path(named)).resolve().name
    return {"teacher" if name == STUDENT else name: of_teacher, STUDENT: student}


def _with_inputs(judge: Judge, sampler: GeneratorSampler, inputs: Path | None) -> Judge:
    """The judge on input pictures, each as often as any other, where these are what the generator takes."""
    if inputs is None and not sampler.of_pictures:
        return judge
    if inputs is None:
        raise ValueError("--input: takes the pictures that the generator is to paint anew")
    given = input_prompts(sampler, inputs)
    on = judge.on([given[number % len(given)] for number in range(len(judge.prompts))], judge.seeds)
    return dataclasses.replace(on, prompt_source=f"{len(on.prompts)} of the pictures of {inputs.name}")


def _drawing(sampler: GeneratorSampler, judge: Judge) -> Callable[[int], None]:
    """What draws so many pictures together."""

    def draw(count: int) -> None:
        some = [judge.prompts[number % len(judge.prompts)] for number in range(count)]
        for _ in sampler.pictures(some, range(count), batch_size=count):
            pass

    return draw


def _times(samplers: Samplers, judge: Judge, device: str) -> list[SideBySide]:
    draws = {name: _drawing(sampler, judge) for name, sampler in samplers.items()}
    times = []
    with advancing_bar("timing side by side", len(BATCH_SIZES)) as progress:
        for size in BATCH_SIZES:
            times.append(time_side_by_side(draws, size, rounds=ROUNDS, least_seconds=LEAST_SECONDS, device=device))
            progress(1)
    return times


def _with_costs(row: Evaluation, sampler: GeneratorSampler, judge: Judge, times: list[SideBySide]) -> Evaluation:
    """With multiply-accumulates of a picture, parameters, and seconds of a picture by batch size."""
    network = sampler.generator.network
    flops = sum(flops_by_component(lambda: _drawing(sampler, judge)(1), sampler.components()).values())
    costs = {"macs": flops / 2, "parameters": float(sum(parameter.numel() for parameter in network.parameters()))}
    costs |= {f"seconds_by_{of.batch_size}": of.seconds_per_picture(row.model) for of in times}
    return dataclasses.replace(row, costs=costs)


def _pictures(samplers: Samplers, judge: Judge) -> GeneratorImages:
    """Grids at the same noise, and strips between the same noises, of both."""
    few, first = judge.first(GALLERY_PICTURES), next(iter(samplers.values()))
    captions = [] if first.own_prompts == [""] else few.prompts
    grids = {name: few.draw(sampler, 1, 1.0) for name, sampler in samplers.items()}
    if first.of_pictures:
        return GeneratorImages(captions, grids, [], {})
    classes = list(dict.fromkeys(captions)) or [""]
    rows = [classes[number % len(classes)] for number in range(STRIPS)]
    ends = [(judge.seeds[0] + 2 * number, judge.seeds[0] + 2 * number + 1) for number in range(STRIPS)]
    strips = {name: to_uint8(sampler.strips(rows, ends, STRIP_PICTURES)).cpu() for name, sampler in samplers.items()}
    return GeneratorImages(captions, grids, rows, {name: of.flatten(0, 1) for name, of in strips.items()})
