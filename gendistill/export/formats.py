"""Export a student to the formats of other applications; every export is opened again and compared with the student."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from diffusers import DiffusionPipeline
from safetensors.torch import save_file
from torch import Tensor

from gendistill.export.kohya import kohya_encoder_weights, kohya_metadata, kohya_weights
from gendistill.export.runtimes import open_programs, require_runtime, write_programs
from gendistill.export.student_folder import fit_transformers_4_and_5, save_lora
from gendistill.runtime.files import atomic_write, new_folder, require_new, require_vacant
from gendistill.runtime.progress import advancing_bar
from gendistill.samplers import FewStepSampler
from gendistill.samplers.families import FAMILIES
from gendistill.samplers.layouts.layout import OriginalLayout
from gendistill.samplers.layouts.lora_files import lora_source
from gendistill.samplers.loading import lists_safety_checker, open_pipeline
from gendistill.samplers.loras import Matrices, adapter_matrices
from gendistill.samplers.single_file import left_out
from gendistill.samplers.tasks import TEXT_TO_IMAGE, Task

logger = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
SEED, PROMPT = 0, "a red apple on a table"
PROGRAMS = ("onnx", "openvino")
FOLDERS = ("diffusers", *PROGRAMS)  # formats that are a folder; the others are a file
TOLERANCE = {"float32": 1e-3, "float16": 0.1, "bfloat16": 0.3}  # maximum error of a pixel in [0, 1] from rounding


@dataclass(frozen=True)
class Exported:
    """A written export, and the maximum and the mean absolute difference of its image from the student's, in [0, 1]."""

    path: Path
    opened_by: str
    max_error: float
    mean_error: float

    def describe(self) -> str:
        size = sum(file.stat().st_size for file in ([self.path] if self.path.is_file() else self.path.rglob("*.*")))
        return (
            f"{self.path} ({size / 2**20:,.1f} MiB), opened again by {self.opened_by}: "
            f"its image is within {self.max_error:.4f} of the student's, {self.mean_error:.5f} on average"
        )


def export(student: str, kind: str, out: Path, *, dtype: str | None = None, prompt: str | None = None) -> Exported:
    """Write a student as `kind`, open it again, and sample the same image with both.

    Args:
        kind: one of `FORMATS`.
        out: a new or empty folder, or a .safetensors file that does not exist.
        dtype: of the weights: float32, float16 or bfloat16; None is float16, or float32 for a program.
        prompt: of the compared image; None is the first prompt of the model, or `PROMPT`.

    Raises:
        ValueError: the format is unknown or does not support the student, `out` would overwrite other files, writing fails, or
            the export samples another image; `out` is unchanged then.
    """
    if kind not in FORMATS:
        raise ValueError(f"--format {kind}: expects one of {', '.join(FORMATS)}")
    dtype = dtype or ("float32" if kind in PROGRAMS else "float16")
    if dtype not in DTYPES or (kind in PROGRAMS and dtype != "float32"):
        if kind in PROGRAMS:
            raise ValueError(f"--dtype {dtype}: --format {kind} expects float32")
        raise ValueError(f"--dtype {dtype}: expects one of {', '.join(DTYPES)}")
    write, reopen, opened_by = FORMATS[kind]
    if kind in PROGRAMS:
        require_runtime(kind)
    if kind not in FOLDERS and out.suffix != ".safetensors":
        raise ValueError(f"--out {out}: --format {kind} expects a .safetensors file, such as {out.name}.safetensors")
    out = out.expanduser().resolve()
    if kind in FOLDERS:
        require_vacant(out, "--out")
    else:
        require_new(out, "--out")
    sampler = FewStepSampler.from_pretrained(student, quantization="none")  # other applications expect unquantized weights
    prompts = [prompt if prompt is not None else (sampler.own_prompts or [PROMPT])[0]]
    writing = (new_folder if kind in FOLDERS else atomic_write)(out)
    with advancing_bar(f"exporting and verifying {kind}", 3) as progress, writing as temporary:
        student_image = _generate(sampler, prompts)
        progress(1)
        temporary.parent.mkdir(parents=True, exist_ok=True)
        write(sampler, temporary, DTYPES[dtype])
        progress(1)
        reopened = reopen(sampler, temporary)
        difference = (_generate(reopened, prompts) - student_image).abs()
        if kind in PROGRAMS:  # image to image, which runs the encoder of the autoencoder too
            task = Task(images=student_image, strength=1.0)
            difference = torch.cat([difference, (_generate(reopened, prompts, task) - _generate(sampler, prompts, task)).abs()])
        if (max_error := float(difference.max())) > TOLERANCE[dtype]:
            raise ValueError(f"--format {kind}: the export samples another image (error {max_error:.2f}); nothing was written")
        progress(1)
    return Exported(out, opened_by, max_error, float(difference.mean()))


def _generate(sampler: FewStepSampler, prompts: list[str], task: Task = TEXT_TO_IMAGE) -> Tensor:
    return next(iter(sampler.images(prompts, [SEED], task=task)))


def _write_folder(sampler: FewStepSampler, out: Path, dtype: torch.dtype) -> None:
    """A diffusers folder, with a LoRA fused. A variant (`fp16`) would be opened only by callers who name it."""
    pipeline = _fused(sampler).to(dtype)
    if lists_safety_checker(pipeline):
        logger.warning("the export has no safety checker; its users can load the model's (subfolder safety_checker)")
    pipeline.save_pretrained(out, safe_serialization=True)
    fit_transformers_4_and_5(out)
    if sampler.spec is not None:
        replace(sampler.spec, lora=False).save(out)


def _open_folder(sampler: FewStepSampler, out: Path) -> FewStepSampler:
    null = left_out(DiffusionPipeline.load_config(out))  # as Stable Diffusion 3 without T5
    return FewStepSampler(DiffusionPipeline.from_pretrained(out, use_safetensors=True, **null), sampler.spec)


def _write_checkpoint(sampler: FewStepSampler, out: Path, dtype: torch.dtype) -> None:
    layout, pipeline = _layout(sampler), _fused(sampler)
    weights = {name: weight.to(dtype).contiguous() for name, weight in layout.weights(pipeline).items()}
    if (marks := layout.marks(pipeline.scheduler, weights)) is None:
        raise _unreadable("checkpoint", sampler.family.prediction_type(pipeline.scheduler))
    _save(weights | marks, out, sampler, layout.release(pipeline))


def _layout(sampler: FewStepSampler) -> OriginalLayout:
    """The layout of the release; raises ValueError for a family without one."""
    if (layout := sampler.family.original_layout) is None:
        known = dict.fromkeys(name for family in FAMILIES if family.original_layout for name in family.pipelines)
        raise ValueError(f"--format checkpoint, kohya: a {sampler.kind} has no original layout; expects {', '.join(known)}")
    return layout


def _unreadable(kind: str, prediction_type: str) -> ValueError:
    return ValueError(
        f"--format {kind}: the student predicts {prediction_type}, but ComfyUI, InvokeAI and stable-diffusion.cpp would read "
        "epsilon in this file; expects a student that was trained with --set progressive.prediction_type=epsilon, or "
        "--format diffusers, whose scheduler names the prediction type"
    )


def _open_checkpoint(sampler: FewStepSampler, out: Path) -> FewStepSampler:
    """Opened with diffusers' `from_single_file`, with the student's configs and scheduler, which the file does not contain."""
    with TemporaryDirectory() as folder:
        _save_configs(sampler.pipeline, Path(folder))
        opened = open_pipeline(out, config=folder)
    opened.scheduler = sampler.pipeline.scheduler
    return FewStepSampler(opened, sampler.spec)


def _save_configs(pipeline: Any, folder: Path) -> None:
    """A pipeline folder without weights."""
    pipeline.save_config(folder)
    for name, part in pipeline.components.items():
        if part is None:
            continue
        save = part.save_config if hasattr(part, "save_config") else getattr(part, "config", part).save_pretrained
        save(folder / name)


def _write_kohya(sampler: FewStepSampler, out: Path, dtype: torch.dtype) -> None:
    adapter = _adapter(sampler)
    layout = _layout(sampler)
    weights = kohya_weights(sampler.pipeline, layout, adapter, dtype)
    weights |= kohya_encoder_weights(sampler.pipeline, _encoders(sampler), dtype)
    _save(weights, out, sampler, f"{layout.release(sampler.pipeline)}/lora", kohya_metadata(weights))


def _write_lora(sampler: FewStepSampler, out: Path, dtype: torch.dtype) -> None:
    save_lora(sampler.pipeline, _adapter(sampler), out.parent, dtype, out.name, _encoders(sampler))


def _open_lora(sampler: FewStepSampler, out: Path) -> FewStepSampler:
    """The teacher with the LoRA, loaded by diffusers."""
    spec = sampler.spec
    assert spec is not None
    opened = open_pipeline(spec.teacher, **spec.teacher_opening | ({"loras": ()} if spec.lora_on_original else {}))
    if spec.prediction_type != sampler.family.prediction_type(opened.scheduler):  # a program reads that of the teacher
        raise _unreadable("lora, kohya", spec.prediction_type)
    source, settings = lora_source(opened, out)
    opened.load_lora_weights(source, **settings)
    opened.scheduler = sampler.pipeline.scheduler
    return FewStepSampler(opened, spec)


def _encoders(sampler: FewStepSampler) -> dict[str, Matrices]:
    """The matrices of a student's LoRA in text encoders: a LoRA of the base carries those of its teacher's LoRAs."""
    encoders = sampler.family.encoders(sampler.pipeline).items()
    return {name: found for name, encoder in encoders if (found := adapter_matrices(encoder, _adapter(sampler)))}


def _adapter(sampler: FewStepSampler) -> str:
    if sampler.spec is None or not sampler.spec.lora:
        raise ValueError("--format lora, kohya: the student is a full network; expects one that was distilled with --lora")
    return str(sampler.pipeline.get_active_adapters()[0])


def _fused(sampler: FewStepSampler) -> Any:
    """The sampler's pipeline, with its LoRA fused into the weights, permanently: its image has been sampled before."""
    pipeline = sampler.pipeline
    if sampler.spec is not None and sampler.spec.lora:
        pipeline.fuse_lora()
        pipeline.unload_lora_weights()
    return pipeline


def _save(
    weights: dict[str, Tensor], out: Path, sampler: FewStepSampler, architecture: str, metadata: dict[str, str] | None = None
) -> None:
    """Write a safetensors file with metadata according to Stability AI's ModelSpec."""
    spec, size = sampler.spec, sampler.size
    hint = "" if spec is None else f"{spec.num_inference_steps[0]} steps, {spec.solver}, CFG {spec.pipeline_guidance_scale:g}"
    prediction_type = sampler.family.prediction_type(sampler.pipeline.scheduler)
    header = {
        "format": "pt",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": architecture,
        "modelspec.implementation": "diffusers" if "/lora" in architecture else "sgm",
        "modelspec.title": f"{spec.num_inference_steps[0]}-step student of {Path(spec.teacher).name}" if spec else sampler.kind,
        "modelspec.resolution": f"{size[1]}x{size[0]}",
        "modelspec.prediction_type": {"v_prediction": "v"}.get(prediction_type, prediction_type),
        "modelspec.usage_hint": hint,
        **(metadata or {}),
    }
    save_file(weights, out, metadata=header)


def _write_programs(sampler: FewStepSampler, out: Path, dtype: torch.dtype, kind: str) -> None:
    write_programs(sampler, _fused(sampler), out, kind)


Write = Callable[[FewStepSampler, Path, torch.dtype], None]
Open = Callable[[FewStepSampler, Path], FewStepSampler]
# for each format: the writer, the reader, and the name of the reader for messages
FORMATS: dict[str, tuple[Write, Open, str]] = {
    "diffusers": (_write_folder, _open_folder, "diffusers"),
    "checkpoint": (_write_checkpoint, _open_checkpoint, "diffusers' from_single_file"),
    "lora": (_write_lora, _open_lora, "diffusers' load_lora_weights"),
    "kohya": (_write_kohya, _open_lora, "diffusers' load_lora_weights"),
    "onnx": (partial(_write_programs, kind="onnx"), partial(open_programs, kind="onnx"), "onnxruntime"),
    "openvino": (partial(_write_programs, kind="openvino"), partial(open_programs, kind="openvino"), "OpenVINO"),
}
