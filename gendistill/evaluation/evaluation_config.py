"""How models and sets of images are evaluated and compared: what the command line, Python and the reports agree on."""

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
        reference: real images: a folder, `.zip`, tar or WebDataset shards, a dataset; `.npz` statistics too if sets of images
            are evaluated, from which only the Fréchet distance follows.
        caption: the caption field that prompts are sampled from; of a set of images, the one that says what each shows.
        prompts: a text file to sample the prompts from instead.
        num: images per row; 2,000 where None.
        metrics: names of `gendistill.metrics.registry.METRICS`; where None, all usual ones that can be computed.
        extractor, resize: what `load_extractor` takes.
        clip: a CLIP model's folder or `MODEL/TAG`; where None, the embedded one.
        intervals: whether scores get bootstrapped 95 % intervals.
        cache: folder where generated images and features are kept.
        out: folder to write to; where None, the model's own.
        device: the best that is there where None.
        teacher: of a student; where None, the one that its folder names.
        steps: step counts of the student; where None, those that it was trained for.
        inputs: images for a GAN that translates images.
        quantization: of a diffusion student, see `quantize`; as it was trained to where None.
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
    inputs: Path | None = None
    quantization: str | None = None


@dataclass(frozen=True)
class ComparisonConfig(EvaluationConfig):
    """The options of `gendistill compare`: those of an evaluation, and more.

    Attributes:
        out: folder to write to; `runs/compare` where None.
        guidance_scale: of all models that have a choice; their own defaults where None.
        solver: of models that are no students; the scheduler that they come with where None.
        probes: a `probes.yaml`; the one beside the reference's images where None.
        loras: files or folders, made for the first model, to be loaded into its students too.
        controls: folders of ControlNets, likewise, each with the file of the image that controls.
        quick: few images; a look before the measurement.
    """

    guidance_scale: float | None = None
    solver: str | None = None
    probes: Path | None = None
    loras: Sequence[str] = ()
    controls: Sequence[tuple[str, str]] = ()
    quick: bool = False
