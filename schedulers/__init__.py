"""Noise schedules, timestep grids and the schedulers that students are exported with."""

from .export import student_scheduler
from .noise import NoiseSchedule, expand_to
from .timesteps import skipping, trailing

__all__ = ["NoiseSchedule", "expand_to", "skipping", "student_scheduler", "trailing"]
