"""What `gendistill sample` is given beside prompts: files, read as a task of the sampler."""

from __future__ import annotations

from pathlib import Path

from diffusers import ControlNetModel
from torch import Tensor

from gendistill.data.images import as_tensor, decode_picture, fitted
from gendistill.samplers import FewStepSampler
from gendistill.samplers.missing_weights import require_loaded
from gendistill.samplers.tasks import Task
from gendistill.sampling.load_add_ons import require_control


def read_task(
    sampler: FewStepSampler,
    count: int,
    *,
    picture: Path | None = None,
    mask: Path | None = None,
    strength: float = 0.8,
    control: tuple[str, str] | None = None,
) -> Task:
    """The same for each of `count` prompts, at the size of the model's pictures.

    Args:
        picture: to begin at; `mask`: where it is painted anew, white; `strength`: the share of the steps that are made of it.
        control: the folder of a ControlNet, and the file of the picture that it looks at.

    Raises:
        ValueError: a file is not there or no picture, or a mask has nothing to be on.
    """
    if mask is not None and picture is None:
        raise ValueError(f"--mask {mask}: takes --input, the picture to paint in")
    network = controls = None
    if control is not None:
        folder, file = control
        controls = _read(Path(file), "--control", sampler.size)
        require_control(folder, controls[0], sampler.size)
        network = ControlNetModel.from_pretrained(folder, use_safetensors=True)
        require_loaded(folder, {"controlnet": network})
        network = network.to(sampler.device, sampler.pipeline.dtype)
        controls = controls.expand(count, -1, -1, -1)
    pictures = None if picture is None else _read(picture, "--input", sampler.size).expand(count, -1, -1, -1)
    masks = (
        None if mask is None else (_read(mask, "--mask", sampler.size).mean(1, True) > 0.5).float().expand(count, -1, -1, -1)
    )
    return Task(pictures=pictures, masks=masks, strength=strength, controlnet=network, controls=controls)


def _read(file: Path, option: str, size: tuple[int, int]) -> Tensor:
    """The middle of a picture at a size: (1, 3, H, W) in [0, 1]."""
    try:
        return as_tensor(fitted(decode_picture(file), *size))[None] / 2 + 0.5
    except (OSError, ValueError) as error:
        raise ValueError(f"{option} {file}: {error}") from error
