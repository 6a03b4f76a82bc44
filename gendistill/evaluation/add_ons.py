"""Does what was made for the teacher still do the same on the student? A LoRA and a ControlNet, by what they change.

The effect of an add-on is the mean shift of features: of pictures drawn with it, less those of the same prompts and seeds drawn
without. An add-on still fits where the student's pictures shift in the direction of the teacher's, and as far.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import ControlNetModel, StableDiffusionControlNetPipeline, StableDiffusionXLControlNetPipeline
from diffusers.utils import convert_unet_state_dict_to_peft, logging
from torch import Tensor, nn

from gendistill.metrics.extractors import FeatureExtractor
from gendistill.metrics.features import extract
from gendistill.metrics.matrix import Features, Matrix, feature_matrices
from gendistill.samplers import FewStepSampler, to_uint8

LORA_FILE = "pytorch_lora_weights.safetensors"
ADAPTER = "does-it-fit"
CONTROLLED = {
    "StableDiffusionPipeline": StableDiffusionControlNetPipeline,
    "StableDiffusionXLPipeline": StableDiffusionXLControlNetPipeline,
}
LEFT_OUT = ("safety_checker", "feature_extractor", "image_encoder")

Progress = Callable[[int], None]


@dataclass(frozen=True)
class Drawing:
    """A model and how its pictures are drawn: teacher or student, from given prompts and seeds."""

    name: str
    sampler: FewStepSampler
    steps: int
    guidance_scale: float
    prompts: Sequence[str]
    seeds: Sequence[int]
    batch_size: int | None = None
    progress: Progress | None = None

    @property
    def how(self) -> dict[str, Any]:
        return {
            "num_inference_steps": self.steps,
            "guidance_scale": self.guidance_scale,
            "batch_size": self.batch_size,
            "progress": self.progress,
        }

    def first(self, count: int) -> Drawing:
        """The same of the first pictures alone."""
        return replace(self, prompts=self.prompts[:count], seeds=self.seeds[:count])

    def latents(self) -> Tensor:
        """What diffusion ends in: float32 (N, C, h, w) on the CPU."""
        return torch.cat([batch.float().cpu() for batch in self.sampler.latents(self.prompts, self.seeds, **self.how)])

    def features(self, extractor: FeatureExtractor, sampler: FewStepSampler | None = None) -> Tensor:
        """Of its pictures (N, D); of those of another sampler in its place, drawn in the same way."""
        drawn = (sampler or self.sampler).pictures(self.prompts, self.seeds, **self.how)
        return extract(extractor, (to_uint8(batch).cpu() for batch in drawn))


@dataclass(frozen=True)
class Effect:
    """What an add-on does to the teacher's pictures and to the student's.

    Attributes:
        teacher_length, student_length: of the mean shifts, in the extractor's units.
        cosine: between the two mean shifts, in [-1, 1]; None where one of them is no shift at all.
        repeated: the cosine between the teacher's own shifts on every other prompt and on the rest: where it is low, there are
            too few pictures for the student's cosine to mean much. None where it cannot be told.
    """

    teacher_length: float
    student_length: float
    cosine: float | None
    repeated: float | None

    @property
    def ratio(self) -> float | None:
        """The student's shift as a multiple of the teacher's; None where the teacher's is none."""
        return self.student_length / self.teacher_length if self.teacher_length else None


@dataclass(frozen=True)
class AddOnFit:
    """Whether an add-on made for the teacher fits the student.

    Attributes:
        kind: `LoRA` or `ControlNet`.
        notes: sentences: what did not load, and why.
        unfit: of a LoRA, the modules of the student's network that it has weights for and that are not there, or are of
            another width.
        effect: None where it did not run in both models.
    """

    kind: str
    source: str
    notes: tuple[str, ...]
    unfit: tuple[str, ...]
    effect: Effect | None


class DoesNotLoadError(Exception):
    """An add-on does not load into a model, or does not run in it: why, in a sentence, and the modules that it does not fit."""

    def __init__(self, sentence: str, unfit: Sequence[str] = ()) -> None:
        super().__init__(sentence)
        self.unfit = list(unfit)


def effect_of(teacher: Features, student: Features) -> Effect:
    """From shifts of features (N, D) of the same prompts and seeds: features with the add-on, less those without.

    Raises:
        ValueError: no shifts, other numbers of them, other features, or not finite.
    """
    t, s = feature_matrices(teacher, student, ("teacher", "student"), at_least=1)
    if len(t) != len(s):
        raise ValueError(f"teacher and student: got {len(t)} and {len(s)} pictures, takes the same prompts and seeds in both.")
    mean, other = t.mean(axis=0), s.mean(axis=0)
    halves = _cosine(t[::2].mean(axis=0), t[1::2].mean(axis=0)) if len(t) > 1 else None
    return Effect(float(np.linalg.norm(mean)), float(np.linalg.norm(other)), _cosine(mean, other), halves)


def lora_file(lora: str | Path) -> Path:
    """The file that is meant: itself, or `pytorch_lora_weights.safetensors` in a folder; ValueError where there is none."""
    file = Path(lora) / LORA_FILE if Path(lora).is_dir() else Path(lora)
    if file.suffix != ".safetensors" or not file.is_file():
        raise ValueError(f"lora {lora}: takes a .safetensors file that is there, or a folder with {LORA_FILE}")
    return file


def require_control(control: str | Path, picture: Tensor, size: tuple[int, int]) -> None:
    """Raise ValueError where there is no ControlNet in a folder, or its picture is not (3, *size)."""
    if not (Path(control) / "config.json").is_file():
        raise ValueError(f"control {control}: takes the folder of a ControlNet that is there, with its config.json")
    if tuple(picture.shape) != (3, *size):
        raise ValueError(f"control picture: got {tuple(picture.shape)}, takes {(3, *size)}, as large as what is drawn")


def lora_fit(
    teacher: Drawing, student: Drawing, lora: str | Path, extractor: FeatureExtractor, plain: Sequence[Tensor]
) -> AddOnFit:
    """A LoRA made for the teacher, loaded into copies of both pipelines by diffusers, beside the adapters that are on.

    Memory holds one more network and its text encoders meanwhile.

    Args:
        lora: a `.safetensors` file, or a folder with `pytorch_lora_weights.safetensors`.
        plain: the features (N, D) of the teacher's pictures and of the student's without it.

    Raises:
        ValueError: as `lora_file`.
    """
    file = lora_file(lora)
    notes, shifts = [], []
    unfit: list[str] = []
    for drawing, without in zip((teacher, student), plain, strict=True):
        unfit = []
        try:
            pipeline, unfit, note = _with_lora(drawing.sampler.pipeline, file)
            notes += [f"The {drawing.name}: {note}."] if note else []
            sampler = FewStepSampler(pipeline, drawing.sampler.spec, drawing.sampler.eta)
            with_lora = _tried(partial(drawing.features, extractor, sampler), f"{file.name} does not run")
            shifts.append(with_lora - without)
        except DoesNotLoadError as error:
            notes.append(f"The {drawing.name}: {error}.")
            unfit = error.unfit
    effect = effect_of(*shifts) if len(shifts) == 2 else None
    return AddOnFit("LoRA", str(lora), (*notes, *_silence(effect)), tuple(unfit), effect)


def control_fit(
    teacher: Drawing,
    student: Drawing,
    control: str | Path,
    picture: Tensor,
    extractor: FeatureExtractor,
    plain: Sequence[Tensor],
) -> AddOnFit:
    """A ControlNet made for the teacher, in diffusers' ControlNet pipelines around both networks.

    Args:
        control: the folder of a `ControlNetModel`.
        picture: that both are controlled by, (3, H, W) in [0, 1], of the pictures' size.
        plain: as for `lora_fit`.

    Raises:
        ValueError: as `require_control`.
    """
    require_control(control, picture, teacher.sampler.size)
    folder = Path(control)
    notes, shifts = [], []
    for drawing, without in zip((teacher, student), plain, strict=True):
        try:
            pipeline, note = _with_control(drawing.sampler.pipeline, folder)
            notes += [f"The {drawing.name}: {note}."] if note else []
            drawn = partial(_controlled_features, drawing, pipeline, picture, extractor)
            features = _tried(drawn, f"{folder.name} does not run")
            shifts.append(features - without)
        except DoesNotLoadError as error:
            notes.append(f"The {drawing.name}: {error}.")
    effect = effect_of(*shifts) if len(shifts) == 2 else None
    return AddOnFit("ControlNet", str(control), (*notes, *_silence(effect)), (), effect)


def _silence(effect: Effect | None) -> list[str]:
    """A sentence where there is no effect to compare."""
    lengths = {} if effect is None else {"teacher": effect.teacher_length, "student": effect.student_length}
    return [f"It changes nothing in the {name}'s pictures." for name, length in lengths.items() if length == 0]


def _cosine(a: Matrix, b: Matrix) -> float | None:
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    return float(np.clip(a @ b / lengths, -1, 1)) if lengths > 0 else None


def _tried(action: Callable[[], Any], what: str) -> Any:
    """What an action gives; whatever a stranger's file makes diffusers and PEFT raise, as one sentence."""
    try:
        return action()
    except torch.OutOfMemoryError:
        raise  # the machine's fault, not the file's
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise DoesNotLoadError(f"{what} ({' '.join(' '.join(lines[:2]).split()).rstrip('.')})") from error


@contextmanager
def _quiet_diffusers() -> Iterator[None]:
    """Without what diffusers and PEFT tell of files that do not fit, which is said in a sentence of ours."""
    before = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.set_verbosity(before)


def _with_lora(pipeline: Any, file: Path) -> tuple[Any, list[str], str]:
    """A copy of a pipeline with a LoRA on, the modules of its network that it does not fit, and a sentence on them.

    A copy, so that a load that fails half-way leaves nothing behind, and neither does one that succeeds.

    Raises:
        DoesNotLoadError: with the modules that it does not fit.
    """
    if not hasattr(pipeline, "load_lora_weights"):
        raise DoesNotLoadError(f"a {type(pipeline).__name__} takes no LoRA")
    source: dict[str, Any] = {"weight_name": file.name, "use_safetensors": True, "local_files_only": True}
    network, failed = pipeline.unet, f"{file.name} does not load"
    state = _tried(lambda: pipeline.lora_state_dict(str(file.parent), unet_config=network.config, **source)[0], failed)
    modules, absent, other_widths = _fitting(state, network)
    unfit = [*other_widths, *absent]
    if other_widths:  # which diffusers loads nothing of, and logs all
        name, why = next(iter(other_widths.items()))
        some = f"{len(unfit)} of {len(modules)} modules do not fit, such as {name}"
        raise DoesNotLoadError(f"{failed}: {some}, which {why}", unfit)
    if modules and len(absent) == len(modules):
        raise DoesNotLoadError(f"{failed}: the network has none of its {len(modules)} modules, such as {absent[0]}", unfit)
    copied = copy.copy(pipeline)
    parts = [name for name in pipeline._lora_loadable_modules if isinstance(getattr(pipeline, name, None), nn.Module)]
    for name in parts:
        setattr(copied, name, copy.deepcopy(getattr(pipeline, name)))
    before: list[str] = []
    for part in (getattr(copied, name) for name in parts):
        before += part.active_adapters() if getattr(part, "_hf_peft_config_loaded", False) else []
    with _quiet_diffusers():
        _tried(lambda: copied.load_lora_weights(str(file.parent), adapter_name=ADAPTER, **source), failed)
    if not any(ADAPTER in adapters for adapters in copied.get_list_adapters().values()):
        raise DoesNotLoadError(f"nothing of {file.name} found a place", unfit)
    copied.set_adapters([*dict.fromkeys(before), ADAPTER])
    some = f"{len(absent)} of {len(modules)} modules of {file.name} were left out, as the network has none called so: "
    some += ", ".join(absent[:2]) + (f" and {len(absent) - 2} more" if absent[2:] else "")
    return copied, unfit, some if absent else ""


def _fitting(state: dict[str, Tensor], network: nn.Module) -> tuple[set[str], list[str], dict[str, str]]:
    """The modules of a network that a LoRA has weights for; those that are not there; and those of another width, and why."""
    prefix = "unet."
    own = {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix) and "lora" in key}
    if own and not any("lora_A" in key for key in own):
        own = convert_unet_state_dict_to_peft(own)
    there = dict(network.named_modules())
    modules, other_widths = set(), {}
    for key, value in sorted(own.items()):
        name, _, matrix = key.partition(".lora_")
        modules.add(name)
        weight = getattr(there.get(name), "weight", None)
        if weight is not None and matrix.startswith("A") and value.shape[1] != weight.shape[1]:
            other_widths[name] = f"takes {weight.shape[1]} inputs, and {value.shape[1]} in the LoRA"
        elif weight is not None and matrix.startswith("B") and value.shape[0] != weight.shape[0]:
            other_widths.setdefault(name, f"gives {weight.shape[0]} outputs, and {value.shape[0]} in the LoRA")
    return modules, sorted(name for name in modules if getattr(there.get(name), "weight", None) is None), other_widths


def _with_control(pipeline: Any, control: Path) -> tuple[Any, str]:
    """The ControlNet's pipeline around a pipeline's own parts, and a sentence where not all that it adds to is there.

    Raises:
        DoesNotLoadError: there is no such pipeline for this family, or the folder cannot be opened.
    """
    kind = CONTROLLED.get(type(pipeline).__name__)
    if kind is None:
        raise DoesNotLoadError(f"a {type(pipeline).__name__} takes no ControlNet")
    network = pipeline.unet
    opened = _tried(
        lambda: ControlNetModel.from_pretrained(str(control), use_safetensors=True, torch_dtype=network.dtype).to(
            pipeline.device
        ),
        f"{control.name} does not load",
    )
    parts = {name: part for name, part in pipeline.components.items() if name not in LEFT_OUT}
    if kind is StableDiffusionControlNetPipeline:
        settings: dict[str, Any] = {"safety_checker": None, "feature_extractor": None, "requires_safety_checker": False}
    else:
        settings = {
            "force_zeros_for_empty_prompt": pipeline.config.force_zeros_for_empty_prompt,
            "add_watermarker": bool(pipeline.watermark),
        }
    controlled = _tried(lambda: kind(**parts, **settings, controlnet=opened.eval()), f"{control.name} does not load")
    controlled.set_progress_bar_config(disable=True)
    # diffusers adds one to the other as far as both go, without a word where one is longer
    skips = 1 + sum(len(block.resnets) + len(block.downsamplers or ()) for block in network.down_blocks)
    added = len(opened.controlnet_down_blocks)
    note = f"{control.name} adds to {added} skip connections and the network has {skips}, so that they are not paired as made"
    return controlled, note if added != skips else ""


@torch.no_grad()
def _controlled_features(drawing: Drawing, pipeline: Any, picture: Tensor, extractor: FeatureExtractor) -> Tensor:
    """Features (N, D) of pictures drawn under the control of one (3, H, W) in [0, 1]."""
    sampler, family, size = drawing.sampler, drawing.sampler.family, drawing.batch_size or 16
    unconditional = family.unconditional(sampler.pipeline) if drawing.guidance_scale > 1 else {}
    # each family asks its pipeline in its own words; a ControlNet's pipeline takes them too, and the picture
    asked = partial(pipeline, image=picture[None])
    batches = []
    for start in range(0, len(drawing.prompts), size):
        pictures = family.draw(
            asked,
            family.encode(sampler.pipeline, list(drawing.prompts[start : start + size])),
            unconditional,
            num_inference_steps=drawing.steps,
            guidance_scale=drawing.guidance_scale,
            eta=sampler.eta,
            generators=[torch.Generator().manual_seed(seed) for seed in drawing.seeds[start : start + size]],
            latent=False,
        )
        batches.append(extract(extractor, to_uint8(pictures.float()).cpu()))
        if drawing.progress:
            drawing.progress(len(pictures))
    return torch.cat(batches)
