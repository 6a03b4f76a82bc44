"""Input files of `gendistill sample`, read as a task of the sampler."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from gendistill.data.images import as_tensor, decode_image, fitted
from gendistill.samplers import FewStepSampler
from gendistill.samplers.tasks import Task
from gendistill.sampling.load_add_ons import control_network, require_control


@dataclass(frozen=True)
class TaskFiles:
    """Input files of the sampling.

    Attributes:
        image: the initial image of image-to-image and inpainting; for an image-to-image generator, an image or a folder.
        mask: the inpainting mask, white where the image is generated.
        strength: the fraction of the steps that are computed, from the noised image on (diffusers' `strength`).
        control: the folder of a ControlNet, and the file of its conditioning image.
    """

    image: Path | None = None
    mask: Path | None = None
    strength: float = 0.8
    control: tuple[str, str] | None = None

    @property
    def any(self) -> bool:
        """Whether there is a file."""
        return any(path is not None for path in (self.image, self.mask, self.control))

    def read(self, sampler: FewStepSampler, count: int) -> Task:
        """The task with these files for each of `count` prompts, at the size of the model's images.

        Raises:
            ValueError: a file does not exist or is not an image, or there is a mask without an image.
        """

        def read(file: Path, option: str) -> Tensor:
            """The centre crop of an image: (1, 3, H, W) in [0, 1]."""
            try:
                return as_tensor(fitted(decode_image(file), *sampler.size))[None] / 2 + 0.5
            except (OSError, ValueError) as error:
                raise ValueError(f"{option} {file}: {error}") from error

        if self.mask is not None and self.image is None:
            raise ValueError(f"--mask {self.mask}: expects --input, the image to inpaint")
        network = controls = None
        if self.control is not None:
            folder, file = self.control
            controls = read(Path(file), "--control")
            require_control(folder, controls[0], sampler.size)
            network = control_network(sampler.pipeline, Path(folder))
            controls = controls.expand(count, -1, -1, -1)
        images = None if self.image is None else read(self.image, "--input").expand(count, -1, -1, -1)
        masks = None
        if self.mask is not None:
            masks = (read(self.mask, "--mask").mean(1, True) > 0.5).float().expand(count, -1, -1, -1)
        return Task(images=images, masks=masks, strength=self.strength, controlnet=network, controls=controls)


NO_FILES = TaskFiles()
