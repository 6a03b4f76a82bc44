"""Sampling: what draws pictures, pipelines in few steps, solver steps, and how a student wants to be sampled."""

from .few_step import FewStepSampler, components_of
from .sampler import NETWORK, Sampler, hash_of_weights, pictures_at_once, to_uint8
from .solvers import ddim_step, invert_ddim_step
from .spec import StudentSpec

__all__ = [
    "NETWORK",
    "FewStepSampler",
    "Sampler",
    "StudentSpec",
    "components_of",
    "ddim_step",
    "hash_of_weights",
    "invert_ddim_step",
    "pictures_at_once",
    "to_uint8",
]
