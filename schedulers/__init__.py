"""Noise schedules, timestep grids and the schedulers that students are exported with."""

from .export import solver_eta, student_scheduler
from .noise import NoiseSchedule, expand_to
from .timesteps import skipping, trailing

__all__ = ["NoiseSchedule", "expand_to", "skipping", "solver_eta", "student_scheduler", "trailing"]
