"""Whether a comparison's students still fit their teacher: measured once for the same models, prompts and add-ons, and kept."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter
from torch import Tensor

from gendistill.data.images import as_tensor, decode_picture, fitted
from gendistill.evaluation.comparison import ComparisonRow, main_rows
from gendistill.evaluation.entries import Contestant
from gendistill.evaluation.fit import Fit, measure_fit
from gendistill.evaluation.image_cache import Album
from gendistill.evaluation.judge import Judge
from gendistill.runtime.device import make_folder
from gendistill.runtime.files import written_aside
from gendistill.runtime.hashing import file_sha256
from gendistill.runtime.progress import advancing_bar
from gendistill.samplers import FewStepSampler
from gendistill.sampling.load_add_ons import lora_file, require_control

PICTURES = 64  # of each model; fewer say little of what a LoRA does

_FIT = TypeAdapter(Fit)


@dataclass(frozen=True)
class AddOns:
    """What was made for the teacher: LoRAs, and ControlNets with the picture (3, H, W) in [0, 1] that controls.

    Attributes:
        contents: hashes of all that is in them.
    """

    loras: tuple[str, ...]
    controls: tuple[tuple[str, Tensor], ...]
    contents: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.loras) + len(self.controls)


def open_add_ons(loras: Sequence[str], controls: Sequence[tuple[str, str]], models: Sequence[Contestant]) -> AddOns:
    """Find what was given for a comparison's models, the teacher first.

    Args:
        loras: files or folders.
        controls: folders of ControlNets, each with the file of a picture, of which the middle is taken at the teacher's size.

    Raises:
        ValueError: one is not there, or there are no teacher and student of diffusion to load it into.
    """
    given = [*(f"--lora {lora}" for lora in loras), *(f"--control {folder}" for folder, _ in controls)]
    teacher = _diffusing(models[0])
    if teacher is None or models[0].is_student or not any(model.is_student and _diffusing(model) for model in models):
        if given:
            raise ValueError(f"{given[0]}: takes a diffusion model as the first model, and a student of it after that")
        return AddOns((), (), ())
    contents = [file_sha256(lora_file(lora)) for lora in loras]
    pictured = []
    for folder, file in controls:
        try:
            picture = as_tensor(fitted(decode_picture(Path(file)), *teacher.size)) / 2 + 0.5
        except ValueError as error:
            raise ValueError(f"--control {folder}={file}: {error}") from error
        require_control(folder, picture, teacher.size)
        pictured.append((folder, picture))
        contents += [file_sha256(of) for of in (*sorted(Path(folder).iterdir()), Path(file)) if of.is_file()]
    return AddOns(tuple(loras), tuple(pictured), tuple(contents))


def measure_fits(rows: list[ComparisonRow], judge: Judge, add_ons: AddOns, folder: Path) -> tuple[dict[str, Fit], list[str]]:
    """Of every student, at the step count that it is meant for first, in the place of the first row's model.

    The teacher is drawn in its own default steps, at the guidance scale that the student imitates.

    Args:
        folder: where the figures are kept.

    Returns:
        By student's name; and a sentence on each that cannot be held against the teacher, or on too few pictures.
    """
    few, students, teacher = judge.first(PICTURES), main_rows(rows), rows[0].contestant
    one = _diffusing(teacher)
    fits: dict[str, Fit] = {}
    notes: list[str] = []
    pictures = len(few.prompts) * 2 * (1 + bool(add_ons) + len(add_ons))
    with advancing_bar("looking whether students still fit", pictures * len(students)) as progress:
        for row in students:
            name, other = row.contestant.name, row.contestant.samplers[row.steps]
            unmeasured = f"whether {name} still fits {teacher.name} was not measured"
            if one is None or not isinstance(other, FewStepSampler):
                if one is not None or isinstance(other, FewStepSampler):  # GANs beside GANs have no latents to fit
                    notes.append(f"{unmeasured}: takes two diffusion models of one latent space")
                continue
            scale = row.contestant.guidance_scale
            imitated = _imitated(one, other, scale)
            file = folder / f"{_key(one, imitated, other, row.steps, scale, few, add_ons)}.json"
            if (kept := _read(file)) is not None:
                fits[name] = kept
                progress(pictures)
                continue
            try:
                fits[name] = measure_fit(
                    one,
                    other,
                    few.prompts,
                    few.seeds,
                    teacher_guidance_scale=imitated,
                    student_steps=row.steps,
                    student_guidance_scale=scale,
                    loras=add_ons.loras,
                    controls=add_ons.controls,
                    extractor=few.extractor,
                    progress=progress,
                )
            except ValueError as error:
                notes.append(f"{unmeasured}: {error}")
                continue
            make_folder(folder)
            with written_aside(file) as aside:
                aside.write_text(json.dumps(dataclasses.asdict(fits[name]), indent=1) + "\n")
    if fits and add_ons and len(few.prompts) < PICTURES:
        notes.append(f"{len(few.prompts)} pictures are too few for what LoRAs and ControlNets do; take {PICTURES} or more")
    return fits, notes


def _imitated(teacher: FewStepSampler, student: FewStepSampler, scale: float) -> float:
    """The teacher's guidance scale that a student drawn at `scale` imitates."""
    spec = student.spec
    if not teacher.family.guided:
        return 1.0
    return spec.guidance_scale if spec is not None and spec.guidance == "baked" else scale


def _key(
    teacher: FewStepSampler,
    imitated: float,
    student: FewStepSampler,
    steps: int,
    scale: float,
    judge: Judge,
    add_ons: AddOns,
) -> str:
    """16 hex digits of all that the figures depend on."""
    models = [Album.key_of(teacher, teacher.default_steps, imitated), Album.key_of(student, steps, scale)]
    sources = [*add_ons.loras, *(source for source, _ in add_ons.controls)]
    extractor = judge.extractor.weights_hash if add_ons else ""
    asked = [models, judge.prompts, judge.seeds, sources, add_ons.contents, extractor]
    return hashlib.sha256(json.dumps(asked).encode()).hexdigest()[:16]


def _read(file: Path) -> Fit | None:
    """Figures that were kept; None where there are none of this version."""
    try:
        return _FIT.validate_python(json.loads(file.read_text()))
    except (OSError, ValueError):
        return None


def _diffusing(model: Contestant) -> FewStepSampler | None:
    """One of its samplers where it is a diffusion model."""
    sampler = next(iter(model.samplers.values()))
    return sampler if isinstance(sampler, FewStepSampler) else None
