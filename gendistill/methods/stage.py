"""A stretch of training: one method's networks, trained by one trainer until its limits, then handed to the next stage."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from gendistill.data.trajectories import TrajectoryData
from gendistill.methods.aligned import AlignedMethod
from gendistill.run.config import TrainerConfig


@dataclass(frozen=True)
class Stage:
    """What the driver trains next.

    Attributes:
        method: with its networks; the average that validates best is loaded in them once the stage is trained.
        steps: step counts to validate at, the main one first.
        solvers: ways of stepping to choose from.
        student: the folder of the run that the student is written to; None where it is only the next stage's teacher.
        trainer: its settings.
        folder: of the run, for checkpoints and log; "" is the run's own.
        grids: timesteps that its student is sampled at where they are not the trailing ones.
        data: makes what it learns on of the teacher's trajectories; None where it is these.
    """

    method: AlignedMethod
    steps: list[int]
    solvers: list[str]
    student: str | None
    trainer: TrainerConfig
    folder: str = ""
    grids: list[list[int]] = field(default_factory=list)
    data: Callable[[TrajectoryData], TrajectoryData] | None = None
