"""Noise schedules, timestep grids and their search, and the schedulers of exported students."""

from gendistill.schedulers.grid_ddim import GridDDIMScheduler
from gendistill.schedulers.grid_search import cheapest_path, step_costs
from gendistill.schedulers.noise import NoiseSchedule, expand_to
from gendistill.schedulers.prediction import PREDICTION_TYPES, Prediction, from_prediction, to_prediction
from gendistill.schedulers.stochastic_ddim import StochasticDDIMScheduler
from gendistill.schedulers.student_scheduler import solver_eta, student_scheduler
from gendistill.schedulers.timesteps import nearest_divisors, skipping, trailing

__all__ = [
    "PREDICTION_TYPES",
    "GridDDIMScheduler",
    "NoiseSchedule",
    "Prediction",
    "StochasticDDIMScheduler",
    "cheapest_path",
    "expand_to",
    "from_prediction",
    "nearest_divisors",
    "skipping",
    "solver_eta",
    "step_costs",
    "student_scheduler",
    "to_prediction",
    "trailing",
]
