"""Noise schedules, timestep grids and the schedulers that students are exported with."""

from .export import solver_eta, student_scheduler
from .noise import NoiseSchedule, expand_to
from .prediction import PREDICTION_TYPES, Prediction, from_prediction, to_prediction
from .timesteps import skipping, trailing

__all__ = [
    "PREDICTION_TYPES",
    "NoiseSchedule",
    "Prediction",
    "expand_to",
    "from_prediction",
    "skipping",
    "solver_eta",
    "student_scheduler",
    "to_prediction",
    "trailing",
]
