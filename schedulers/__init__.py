"""Noise schedules, timestep grids and their search, and the schedulers of exported students."""

from gendistill.schedulers.grid_ddim import GridDDIMScheduler
from gendistill.schedulers.grid_search import cheapest_path, step_costs
from gendistill.schedulers.noise import NoiseSchedule, expand_to, is_edm, is_flow, shift_of, sigma_data_of
from gendistill.schedulers.prediction import PREDICTION_TYPES, Prediction, from_prediction, to_prediction
from gendistill.schedulers.stochastic_ddim import StochasticDDIMScheduler
from gendistill.schedulers.student_scheduler import (
    edm_scheduler,
    flow_scheduler,
    fresh_noise,
    solver_eta,
    student_scheduler,
    usable_solvers,
)
from gendistill.schedulers.timesteps import nearest_divisors, skipping, trailing

__all__ = [
    "PREDICTION_TYPES",
    "GridDDIMScheduler",
    "NoiseSchedule",
    "Prediction",
    "StochasticDDIMScheduler",
    "cheapest_path",
    "edm_scheduler",
    "expand_to",
    "flow_scheduler",
    "fresh_noise",
    "from_prediction",
    "is_edm",
    "is_flow",
    "nearest_divisors",
    "shift_of",
    "sigma_data_of",
    "skipping",
    "solver_eta",
    "step_costs",
    "student_scheduler",
    "to_prediction",
    "trailing",
    "usable_solvers",
]
