"""The options of evaluations and comparisons, shared by the command line, Python and the reports."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from gendistill.data.sources.captions import CaptionOption

CACHE = ".cache/gendistill"


@dataclass(frozen=True)
class EvaluationConfig:
    """The options of `gendistill evaluate`.

    Attributes:
        reference: real images: a folder, `.zip`, tar or WebDataset shards, a dataset; for sets of images also `.npz`
            statistics, from which only the Fréchet distance can be computed.
        caption: the caption field that prompts are sampled from; for a set of images, the field with the images' prompts.
        prompts: a text file to sample the prompts from instead.
        num: images per row; 2,000 if None.
        metrics: names in `gendistill.metrics.registry.METRICS`; if None, all default metrics that can be computed.
        extractor, resize: arguments of `load_extractor`.
        clip: a CLIP model's folder or `MODEL/TAG`; the embedded model if None.
        intervals: whether scores get bootstrapped 95 % intervals.
        cache: folder in which generated images and features are cached.
        out: folder to write to; the model's folder if None.
        device: the best available device if None.
        teacher: the student's teacher; the one that is named in the student's folder if None.
        steps: step counts of the student; those that it was trained for if None.
        teacher_scales: guidance scales at which a teacher without stored figures is measured, in addition to few steps without
            guidance; the usual ones if None, and none for an evaluation of the student alone.
        inputs: images for a GAN that translates images.
        quantization: quantization of a diffusion student, see `quantize`; the one that it was trained with if None.
        dtype: precision of a diffusion student and of its teacher: `float16`, `bfloat16`, `float32`; if None that of the
            evaluation in the teacher's folder, float32 without one.
    """

    reference: str
    caption: CaptionOption = None
    prompts: str | None = None
    num: int | None = None
    metrics: Sequence[str] | None = None
    extractor: str | None = None
    resize: str | None = None
    clip: str | None = None
    intervals: bool = True
    seed: int = 0
    cache: str = CACHE
    out: Path | None = None
    device: str | None = None
    teacher: str | None = None
    steps: Sequence[int] | None = None
    teacher_scales: Sequence[float] | None = None
    inputs: Path | None = None
    quantization: str | None = None
    dtype: str | None = None

    def __post_init__(self) -> None:
        """Paths may be given as strings."""
        for name in ("out", "inputs", "probes"):
            if isinstance(value := getattr(self, name, None), str):
                object.__setattr__(self, name, Path(value))


@dataclass(frozen=True)
class ComparisonConfig(EvaluationConfig):
    """The options of `gendistill compare`, in addition to those of an evaluation.

    Attributes:
        out: folder to write to; `runs/compare` if None.
        guidance_scale: guidance scale of all models that support guidance; each model's default if None.
        solver: solver of models that are not students; the pipeline's scheduler if None.
        probes: a `probes.yaml`; the one next to the reference's images if None.
        loras: LoRA files or folders, trained for the first model, which are loaded into its students too.
        controls: folders of ControlNets trained for the first model, each with the file of its control image.
        quick: a preview with few images.
    """

    guidance_scale: float | None = None
    solver: str | None = None
    probes: Path | None = None
    loras: Sequence[str] = ()
    controls: Sequence[tuple[str, str]] = ()
    quick: bool = False
