"""`gendistill compare`: models side by side at several step counts, and what distillation broke."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from gendistill.evaluation.breakage import Breakage, Examiner
from gendistill.evaluation.class_captions import class_caption
from gendistill.evaluation.compare_fit import measure_fits, open_add_ons
from gendistill.evaluation.compare_report import write_reports
from gendistill.evaluation.comparison import FILE_NAME, ModelComparison, Row, RowTest, main_rows
from gendistill.evaluation.entries import Contestant, open_contestants
from gendistill.evaluation.extraction import as_tensor
from gendistill.evaluation.image_cache import Album
from gendistill.evaluation.judge import METRICS, Judge, build_judge
from gendistill.evaluation.probes import Probes
from gendistill.metrics.cost.efficiency import Costs, pictures_drawn
from gendistill.metrics.distances.clip_score import clip_scores
from gendistill.metrics.distances.uncertainty import mean_interval, sample_size_warning
from gendistill.metrics.pairs.fidelity import MOST_PSNR, feature_cosine, paired_fidelity
from gendistill.metrics.pairs.paired import paired_test, paired_test_frechet
from gendistill.metrics.pairs.perceptual import Lpips, available_lpips
from gendistill.runtime.device import make_folder, usable_device
from gendistill.runtime.files import written_aside
from gendistill.runtime.progress import advancing_bar
from gendistill.sampling.costs import measure_costs

STEPS = (1, 2, 4, 8, 16, 50)
FIDELITY_PICTURES = 256


@dataclass(frozen=True)
class Thoroughness:
    """How much is drawn and measured."""

    num: int  # pictures a row
    probes: int  # pictures for each attribute and each kind of unusual prompt
    batch_sizes: tuple[int, ...]  # that costs are measured at
    repeats: int
    least_seconds: float  # of repeats at each batch size
    energy_seconds: float  # that energy is measured for, where it can be; 0 leaves it out


THOROUGH = Thoroughness(num=2000, probes=400, batch_sizes=(1, 4, 16), repeats=5, least_seconds=3, energy_seconds=3)
QUICK = Thoroughness(num=200, probes=64, batch_sizes=(1, 8), repeats=2, least_seconds=0, energy_seconds=0)


def compare(
    models: list[str],
    *,
    steps: list[int] | None = None,
    reference: str,
    caption: str | dict[str, float] | None = None,
    prompts: str | None = None,
    num: int | None = None,
    guidance_scale: float | None = None,
    solver: str | None = None,
    extractor: str | None = None,
    clip: str | None = None,
    probes: Path | None = None,
    loras: Sequence[str] = (),
    controls: Sequence[tuple[str, str]] = (),
    quick: bool = False,
    seed: int = 0,
    cache: str = ".cache/gendistill",
    out: Path,
    device: str | None = None,
) -> ModelComparison:
    """Draw from every model at every step count, score, time and test; write report.html, PNG, CSV and JSON to `out`.

    What was drawn, extracted and timed is kept, so that a comparison that was stopped, or is asked for again with one model
    more, goes on from there.

    Args:
        models: the first is what the others are held against, at its most steps: put the teacher first.
        steps: `STEPS` where None; a student is drawn in those of them that it was validated at, a GAN in one.
        caption: the field that prompts are drawn from; the one whose texts are a GAN's classes where None.
        probes: a `probes.yaml`; the one beside the reference's pictures where None.
        loras: files or folders, made for the first model, to be loaded into its students too.
        controls: folders of ControlNets, likewise, each with the file of the picture that controls.
        quick: few pictures; a look before the measurement.

    Raises:
        ValueError: a model, the reference or a metric network cannot be used.
    """
    amount = QUICK if quick else THOROUGH
    device, folder = usable_device(device), make_folder(out)
    found = Probes.load(probes) if probes else Probes.beside(reference)
    contestants = open_contestants(models, steps or list(STEPS), guidance_scale=guidance_scale, solver=solver, device=device)
    add_ons = open_add_ons(loras, controls, contestants)
    samplers = [sampler for model in contestants for sampler in model.samplers.values()]
    if caption is None and prompts is None:
        caption = class_caption(reference, samplers)
    with advancing_bar("reading the reference") as progress:
        judge = build_judge(
            reference,
            caption=caption,
            num=num or amount.num,
            seed=seed,
            extractor=extractor,
            clip=clip,
            prompts=prompts,
            cache=cache,
            keep=True,
            square=all(sampler.size[0] == sampler.size[1] for sampler in samplers),
            device=device,
            progress=progress,
        ).of_models(samplers)
    rows = _rows(contestants, judge, amount, folder)
    examiner = Examiner(judge, reference, found, amount.probes)
    warning = sample_size_warning(len(judge.prompts), judge.extractor.dim)
    tests, broken = _tests(rows, judge), _broken(rows, examiner)
    fits, notes = measure_fits(rows, judge, add_ons, Path(cache) / "fits")
    comparison = ModelComparison(judge, rows, tests, broken, fits, [*([warning] if warning else []), *notes])
    files = write_reports(comparison, folder, reference, found)
    with written_aside(folder / FILE_NAME) as aside:
        aside.write_text(comparison.to_json() + "\n")
    return dataclasses.replace(comparison, files=[*files, folder / FILE_NAME])


def _rows(contestants: list[Contestant], judge: Judge, amount: Thoroughness, folder: Path) -> list[Row]:
    drawn = [(model, steps) for model in contestants for steps in model.samplers]
    each = pictures_drawn(amount.batch_sizes, repeats=amount.repeats)
    with advancing_bar("timing", each * len(drawn)) as progress:
        costs = [_costs(model, steps, judge, amount, folder / "costs", each, progress) for model, steps in drawn]
    rows: list[Row] = []
    lpips, _ = available_lpips(device=str(next(iter(contestants[0].samplers.values())).device))
    with advancing_bar("drawing", len(judge.prompts) * len(drawn)) as progress:
        for (model, steps), cost in zip(drawn, costs, strict=True):
            judged = judge.judge(
                model.samplers[steps],
                model=model.name,
                solver=model.solver(steps),
                steps=steps,
                guidance_scale=model.guidance_scale,
                network_calls=model.network_calls(steps),
                metrics=METRICS,
                intervals=True,
                progress=progress,
            )
            row = Row(model, steps, judged, cost)
            rows.append(_told(row, rows[0] if rows else None, judge, lpips))
    return rows


def _told(row: Row, baseline: Row | None, judge: Judge, lpips: Lpips | None) -> Row:
    """With its costs among its figures, and how near its pictures are to the first row's of the same prompts and seeds."""
    scores, intervals, costs = dict(row.evaluation.scores), dict(row.evaluation.intervals), row.costs
    for name, value in ({} if baseline is None else _fidelity(row, baseline, judge, lpips)).items():
        interval = mean_interval(value, seed=judge.seed)
        scores[name], intervals[name] = value.mean().item(), (interval.low, interval.high)
    figures = {"latency_seconds": costs.latency, "pictures_per_second": costs.pictures_per_second, "flops": float(costs.flops)}
    figures |= {} if row.memory is None else {"memory_bytes": float(row.memory)}
    evaluation = dataclasses.replace(row.evaluation, scores=scores, intervals=intervals, costs=figures)
    return dataclasses.replace(row, judged=dataclasses.replace(row.judged, evaluation=evaluation))


def _fidelity(row: Row, baseline: Row, judge: Judge, lpips: Lpips | None) -> dict[str, Tensor]:
    """Scores (N,) of pairs; none where the pictures are of other sizes."""
    few = judge.first(FIDELITY_PICTURES)
    ours, theirs = (few.draw(of.side.sampler, of.steps, of.side.guidance_scale) for of in (row, baseline))
    if ours.shape != theirs.shape:
        return {}
    values = dict(paired_fidelity(ours, theirs, lpips=lpips).values)
    values["psnr"] = values["psnr"].clamp(max=MOST_PSNR)
    values["feature_cosine"] = feature_cosine(*(as_tensor(of.judged.pictures.features) for of in (row, baseline)))
    return values


def _costs(
    model: Contestant,
    steps: int,
    judge: Judge,
    amount: Thoroughness,
    folder: Path,
    pictures: int,
    progress: Callable[[int], None],
) -> Costs:
    """Read where they were measured before of the same model on the same device."""
    sampler, scale = model.samplers[steps], model.guidance_scale
    how = [amount.batch_sizes, amount.repeats, amount.least_seconds, amount.energy_seconds]
    asked = [Album.key_of(sampler, steps, scale), str(sampler.device), how]
    file = folder / f"{hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]}.json"
    try:
        costs = Costs.from_dict(json.loads(file.read_text()))
        progress(pictures)
    except (OSError, ValueError):
        costs = measure_costs(
            sampler,
            judge.prompts[: max(amount.batch_sizes)],
            steps=steps,
            guidance_scale=scale,
            batch_sizes=amount.batch_sizes,
            repeats=amount.repeats,
            least_seconds=amount.least_seconds,
            energy_seconds=amount.energy_seconds,
            progress=progress,
        )
        make_folder(folder)
        with written_aside(file) as aside:
            aside.write_text(json.dumps(costs.to_dict(), indent=1) + "\n")
    return costs


def _tests(rows: list[Row], judge: Judge) -> list[RowTest]:
    """Every row against the first, and the models against one another at equal numbers of steps."""
    pairs = [(row, rows[0]) for row in rows[1:]]
    for number, row in enumerate(rows):
        pairs += [(other, row) for other in rows[number + 1 :] if other.steps == row.steps and row is not rows[0]]
    tests = []
    with advancing_bar("testing differences", len(pairs)) as progress:
        for a, b in pairs:
            ours, theirs = a.judged.pictures.features, b.judged.pictures.features
            found = {judge.metric: paired_test_frechet(ours, theirs, judge.reference.statistics, seed=judge.seed)}
            if judge.scorer is not None:
                found["clip_score"] = paired_test(_clip(a), _clip(b), seed=judge.seed)
            tests += [RowTest(a.evaluation.label, b.evaluation.label, name, test) for name, test in found.items()]
            progress(1)
    return tests


def _clip(row: Row) -> Tensor:
    return clip_scores(as_tensor(row.judged.pictures.images), as_tensor(row.judged.pictures.texts))


def _broken(rows: list[Row], examiner: Examiner) -> dict[str, Breakage]:
    """Of every student, at the step count that it is meant for first, against the first row; none where that is a student."""
    students = main_rows(rows)
    total = examiner.pictures_to_draw() * 2 * len(students)
    with advancing_bar("looking for what broke", total) as progress:
        examining = dataclasses.replace(examiner, progress=progress)
        return {row.contestant.name: examining.examine(rows[0].side, row.side) for row in students}
