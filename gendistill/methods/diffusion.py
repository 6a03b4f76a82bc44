"""What all methods for diffusion models share: a teacher, a student and its average, of which the student learns."""

from __future__ import annotations

from torch import nn

from gendistill.diffusion.networks import Networks
from gendistill.methods.base import Method


class DiffusionMethod(Method):
    """A method that trains one denoiser."""

    networks: Networks

    def trained_modules(self) -> dict[str, nn.Module]:
        return {"student": self.networks.student.network}

    def replace_modules(self, wrapped: dict[str, nn.Module]) -> None:
        self.networks.student = self.networks.student.with_network(wrapped["student"])

    def trained_parameters(self) -> dict[str, dict[str, nn.Parameter]]:
        return {"student": self.networks.trained}
