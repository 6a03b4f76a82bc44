"""`gendistill evaluate` of a GAN: a student beside its teacher at the same noise, or a teacher by itself."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from rich.table import Table
from torch import Tensor

from gendistill.evaluation.class_captions import class_caption
from gendistill.evaluation.extraction import as_tensor
from gendistill.evaluation.generator_report import Pictures, results_table, write_report
from gendistill.evaluation.judge import METRICS, Judge, Judged, build_judge
from gendistill.evaluation.teacher_plans import FILE_NAME, save_rows
from gendistill.gan.generator_sampler import GeneratorSampler
from gendistill.metrics.cost.components import flops_by_component
from gendistill.metrics.cost.interleaved import SideBySide, time_side_by_side
from gendistill.metrics.distances.uncertainty import mean_interval, sample_size_warning
from gendistill.metrics.evaluate import Evaluation
from gendistill.metrics.pairs.fidelity import MOST_PSNR, feature_cosine, paired_fidelity
from gendistill.metrics.pairs.paired import PairedTest, paired_test_frechet
from gendistill.runtime.device import make_folder, usable_device
from gendistill.runtime.files import written_aside
from gendistill.runtime.progress import advancing_bar
from gendistill.samplers import to_uint8
from gendistill.sampling.load import gan_folder, input_prompts, open_sampler, open_teacher_of

GALLERY_PICTURES = 64
STRIPS, STRIP_PICTURES = 8, 8
FIDELITY_PICTURES = 256
BATCH_SIZES = (1, 16)
STUDENT = "student"
ROUNDS, LEAST_SECONDS = 15, 3.0

Samplers = dict[str, GeneratorSampler]


@dataclass(frozen=True)
class GeneratorComparison:
    """A student's row and its teacher's; without a student, the teacher's alone.

    Attributes:
        times: side by side, a batch size each.
        test: whether the distances differ, picture by picture; None without a student.
        warnings: what to know before trusting the figures.
    """

    student: list[Evaluation]
    teacher: list[Evaluation]
    times: list[SideBySide]
    test: PairedTest | None
    warnings: list[str]
    files: list[Path] = field(default_factory=list)

    @property
    def fd_ratio(self) -> float | None:
        """The student's distance from real pictures over the teacher's; 1 is as good."""
        if not self.student:
            return None
        metric = self.student[0].protocol.metric
        return self.student[0].scores[metric] / self.teacher[0].scores[metric]

    @property
    def compression(self) -> dict[str, float]:
        """How many times fewer multiply-accumulates and parameters; none without a student."""
        if not self.student:
            return {}
        ours, theirs = self.student[0].costs, self.teacher[0].costs
        return {name: theirs[name] / ours[name] for name in ("macs", "parameters") if ours[name]}

    @property
    def speed_up(self) -> dict[int, float]:
        """How many times faster the student is, by batch size."""
        if not self.student:
            return {}
        names = self.student[0].model, self.teacher[0].model
        return {of.batch_size: of.speed_up(*names) for of in self.times}

    def table(self) -> Table:
        """For the terminal."""
        return results_table([*self.teacher, *self.student], self.fd_ratio, self.speed_up)

    def to_json(self) -> str:
        return json.dumps(
            {
                "student": [dataclasses.asdict(row) for row in self.student],
                "teacher": [dataclasses.asdict(row) for row in self.teacher],
                "fd_ratio": self.fd_ratio,
                "compression": self.compression,
                "speed_up": self.speed_up,
                "side_by_side": [dataclasses.asdict(of) for of in self.times],
                "test": self.test and dataclasses.asdict(self.test),
                "warnings": self.warnings,
            },
            indent=1,
            default=float,
        )


def evaluate_generator(
    model: str,
    *,
    teacher: str | None = None,
    reference: str,
    caption: str | dict[str, float] | None = None,
    prompts: str | None = None,
    inputs: Path | None = None,
    num: int = 2000,
    steps: list[int] | None = None,
    extractor: str | None = None,
    clip: str | None = None,
    seed: int = 0,
    cache: str = ".cache/gendistill",
    out: Path | None = None,
    device: str | None = None,
) -> GeneratorComparison:
    """Judge a GAN's student beside its teacher; write evaluation.json and report.html to `out` (the model's own folder).

    Both draw from the same noise of the same classes, and are timed turn and turn about. A model that is no student is taken
    as a teacher: its figures are made and written to evaluation.json.

    Args:
        model: a GAN folder, or a run that left one.
        teacher: the GAN that the student is held against, as `open_teacher_of` takes it; its own where None.
        caption: the field whose texts are classes; the one that fits where None.
        inputs: pictures, for generators that paint pictures anew.
        cache: folder where what was drawn and extracted is kept.

    Raises:
        ValueError: a model, the reference or a metric network cannot be used.
    """
    folder = gan_folder(model)
    assert folder is not None
    device, place = usable_device(device), make_folder(out or folder)
    samplers = _open(folder, teacher, device)
    for sampler in samplers.values():
        for count in steps or []:
            sampler.require_steps(count)
    first = next(iter(samplers.values()))
    if caption is None and prompts is None:
        caption = class_caption(reference, samplers.values())
    with advancing_bar("reading the reference") as progress:
        judge = build_judge(
            reference,
            caption=caption,
            num=num,
            seed=seed,
            extractor=extractor,
            clip=clip,
            prompts=prompts,
            cache=cache,
            keep=not first.of_pictures,  # an input picture may change, its path does not say so
            square=first.size[0] == first.size[1],
            device=device,
            progress=progress,
        ).of_models(samplers.values())
    judge = _with_inputs(judge, first, inputs)
    judged = _judged(samplers, judge)
    times = _times(samplers, judge, device)
    rows = [_with_costs(judged[name].evaluation, samplers[name], judge, times) for name in samplers]
    warning = sample_size_warning(len(judge.prompts), judge.extractor.dim)
    warnings = [warning] if warning else []
    if len(rows) == 1:
        save_rows(rows, place / FILE_NAME)
        return GeneratorComparison([], rows, times, None, warnings, [place / FILE_NAME])
    rows[1] = _with_fidelity(rows[1], samplers, judged, judge)
    ours, theirs = (judged[row.model].pictures.features for row in reversed(rows))
    test = paired_test_frechet(ours, theirs, judge.reference.statistics, seed=judge.seed)
    files = [place / FILE_NAME, place / "report.html"]
    comparison = GeneratorComparison(rows[1:], rows[:1], times, test, warnings, files)
    with written_aside(files[0]) as aside:
        aside.write_text(comparison.to_json() + "\n")
    told = samplers[STUDENT].student or {}
    write_report(files[1], rows[0], rows[1], times, test, warnings, _pictures(samplers, judge), told)
    return comparison


def _open(folder: Path, teacher: str | None, device: str) -> Samplers:
    """By name, the teacher first and named after its folder.

    Raises:
        ValueError: the student's teacher is nowhere, or of other classes or pictures.
    """
    student = _generator(folder, device)
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


def _generator(folder: Path, device: str) -> GeneratorSampler:
    sampler = open_sampler(folder, device=device)
    assert isinstance(sampler, GeneratorSampler)
    return sampler


def _with_inputs(judge: Judge, sampler: GeneratorSampler, inputs: Path | None) -> Judge:
    """The judge on input pictures, each as often as any other, where these are what the generator takes."""
    if inputs is None and not sampler.of_pictures:
        return judge
    if inputs is None:
        raise ValueError("--input: takes the pictures that the generator is to paint anew")
    given = input_prompts(sampler, inputs)
    on = judge.on([given[number % len(given)] for number in range(len(judge.prompts))], judge.seeds)
    return dataclasses.replace(on, prompt_source=f"{len(on.prompts)} of the pictures of {inputs.name}")


def _judged(samplers: Samplers, judge: Judge) -> dict[str, Judged]:
    with advancing_bar("drawing", len(judge.prompts) * len(samplers)) as progress:
        return {
            name: judge.judge(
                sampler,
                model=name,
                solver=sampler.solver,
                steps=1,
                guidance_scale=1.0,
                network_calls=1,
                metrics=METRICS,
                intervals=True,
                progress=progress,
            )
            for name, sampler in samplers.items()
        }


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


def _with_fidelity(row: Evaluation, samplers: Samplers, judged: dict[str, Judged], judge: Judge) -> Evaluation:
    """With how near the student's pictures are to the teacher's of the same noise, and the intervals of that."""
    few = judge.first(FIDELITY_PICTURES)
    theirs, ours = (few.draw(sampler, 1, 1.0) for sampler in samplers.values())
    values: dict[str, Tensor] = dict(paired_fidelity(ours, theirs).values)
    values["psnr"] = values["psnr"].clamp(max=MOST_PSNR)
    values["feature_cosine"] = feature_cosine(*(as_tensor(of.pictures.features) for of in judged.values()))
    intervals = {name: mean_interval(value, seed=judge.seed) for name, value in values.items()}
    return dataclasses.replace(
        row,
        scores={**row.scores, **{name: value.mean().item() for name, value in values.items()}},
        intervals={**row.intervals, **{name: (of.low, of.high) for name, of in intervals.items()}},
    )


def _pictures(samplers: Samplers, judge: Judge) -> Pictures:
    """Grids at the same noise, and strips between the same noises, of both."""
    few, first = judge.first(GALLERY_PICTURES), next(iter(samplers.values()))
    captions = [] if first.own_prompts == [""] else few.prompts
    grids = {name: few.draw(sampler, 1, 1.0) for name, sampler in samplers.items()}
    if first.of_pictures:
        return Pictures(captions, grids, [], {})
    classes = list(dict.fromkeys(captions)) or [""]
    rows = [classes[number % len(classes)] for number in range(STRIPS)]
    ends = [(judge.seeds[0] + 2 * number, judge.seeds[0] + 2 * number + 1) for number in range(STRIPS)]
    strips = {name: _strips(sampler, rows, ends) for name, sampler in samplers.items()}
    return Pictures(captions, grids, rows, strips)


def _strips(sampler: GeneratorSampler, rows: list[str], ends: list[tuple[int, int]]) -> Tensor:
    drawn: Tensor = to_uint8(sampler.strips(rows, ends, STRIP_PICTURES)).cpu()
    return torch.flatten(drawn, 0, 1)
