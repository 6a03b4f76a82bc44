"""What all methods for diffusion models share: a teacher, students and their averages, and what these are told of its ways."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import Tensor, nn

from gendistill.diffusion.trained_networks import Networks
from gendistill.methods.alignment import Alignment
from gendistill.methods.latent_adversary import LatentAdversary
from gendistill.training.method import Method, OptimizerSettings


class AlignedMethod(Method):
    """A method whose student may learn from its teacher's ways, with whoever else learns for that.

    Attributes:
        alignments: what each student is told of them, by the name of its optimizer; none where that is nothing.
    """

    networks: Networks
    alignments: Mapping[str, Alignment] = MappingProxyType({})

    @property
    def students(self) -> dict[str, Networks]:
        """By optimizer name; `student` is the one that the run is for."""
        return {"student": self.networks}

    def align(self, make: Callable[[Networks, str], Alignment]) -> None:
        """Let each student learn from the ways; `make` is called with its networks and the name of its optimizer."""
        self.alignments = {name: make(networks, name) for name, networks in self.students.items()}
        self.losses_fall = not self.adversaries

    @property
    def adversaries(self) -> list[LatentAdversary]:
        """Those that learn to tell a student from its teacher."""
        return [of.adversary for of in self.alignments.values() if of.adversary is not None]

    def trained_modules(self) -> dict[str, nn.Module]:
        students = {name: networks.student.network for name, networks in self.students.items()}
        return students | {of.name: of.judge for of in self.adversaries}

    def replace_modules(self, wrapped: dict[str, nn.Module]) -> None:
        for name, networks in self.students.items():
            networks.student = networks.student.with_network(wrapped[name])
        for adversary in self.adversaries:
            adversary.network = wrapped[adversary.name]

    def trained_parameters(self) -> dict[str, dict[str, nn.Parameter]]:
        students = {name: networks.trained for name, networks in self.students.items()}
        return students | {of.name: of.parameters for of in self.adversaries}

    def buffers(self) -> dict[str, Tensor]:
        """The averages of further students: a checkpoint holds that of the first as the average."""
        others = {name: networks for name, networks in self.students.items() if networks is not self.networks}
        return {f"{name}_average.{path}": of for name, networks in others.items() for path, of in networks.averaged.items()}

    def optimizer_settings(self, name: str) -> OptimizerSettings:
        return next((of.settings for of in self.adversaries if of.name == name), OptimizerSettings())
