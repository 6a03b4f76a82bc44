"""Noise schedules, timestep grids and their search, and the schedulers that students are exported with."""

from gendistill.schedulers.grid_ddim import GridDDIMScheduler
from gendistill.schedulers.grid_search import cheapest_path, search_grid, step_costs
from gendistill.schedulers.noise import NoiseSchedule, expand_to
from gendistill.schedulers.prediction import PREDICTION_TYPES, Prediction, from_prediction, to_prediction
from gendistill.schedulers.stochastic_ddim import StochasticDDIMScheduler
from gendistill.schedulers.student_scheduler import solver_eta, student_scheduler
from gendistill.schedulers.timesteps import karras, leading, linspace, skipping, trailing, uniform_log_snr

__all__ = [
    "PREDICTION_TYPES",
    "GridDDIMScheduler",
    "NoiseSchedule",
    "Prediction",
    "StochasticDDIMScheduler",
    "cheapest_path",
    "expand_to",
    "from_prediction",
    "karras",
    "leading",
    "linspace",
    "search_grid",
    "skipping",
    "solver_eta",
    "step_costs",
    "student_scheduler",
    "to_prediction",
    "trailing",
    "uniform_log_snr",
]
