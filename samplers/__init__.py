"""Sampling: the interface of samplers, few-step pipelines, solver steps, and the sampling settings of a student."""

from gendistill.samplers.few_step import FewStepSampler, components_of
from gendistill.samplers.sampler import NETWORK, Sampler, SampleRequest, hash_of_weights, image_grid, images_at_once, to_uint8
from gendistill.samplers.solvers import ddim_step, dpm_solver_path, invert_ddim_step, noisy_step
from gendistill.samplers.spec import StudentSpec

__all__ = [
    "NETWORK",
    "FewStepSampler",
    "SampleRequest",
    "Sampler",
    "StudentSpec",
    "components_of",
    "ddim_step",
    "dpm_solver_path",
    "hash_of_weights",
    "image_grid",
    "images_at_once",
    "invert_ddim_step",
    "noisy_step",
    "to_uint8",
]
