"""Which settings of a run go together; what does not is one sentence that names the setting."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gendistill.config import DistillConfig


def require_together(config: DistillConfig) -> None:
    """Raise ValueError where settings do not go together, each of which may be set so."""
    _trains_all_weights_where_asked(config)
    _compresses_what_it_can(config)
    if not config.steps or min(config.steps) < 1:
        raise ValueError(f"steps {config.steps}: takes at least one step count, each 1 or more")
    if config.method == "progressive":
        _halves_to_its_steps(config)
    _has_as_many_timesteps(config)
    _is_guided(config)
    _aligns(config)


def _trains_all_weights_where_asked(config: DistillConfig) -> None:
    for name, is_asked in {"start": config.start is not None, "quantization": config.quantization != "none"}.items():
        if is_asked and config.method in ("gan", "decoder"):
            raise ValueError(f"{name} {getattr(config, name)}: is of a denoiser, not of --method {config.method}")
        if is_asked and config.lora.enabled:
            raise ValueError(f"{name} {getattr(config, name)}: trains all weights; takes lora.enabled=false")
    if config.start is not None and config.compresses:
        raise ValueError(f"start {config.start}: takes no compress beside it; a smaller network begins from its teacher")


def _compresses_what_it_can(config: DistillConfig) -> None:
    usual = type(config.compress)()
    asked = {name for name, default in usual if getattr(config.compress, name) != default}
    if config.method == "gan":
        if config.compress.blocks:
            raise ValueError("compress.blocks: is of a diffusion model; a GAN takes compress.factor")
        return
    known: set[str] = set() if config.method == "decoder" else {"factor", "blocks", "student_config"}
    if asked - known:
        takes = ", ".join(f"compress.{name}" for name in sorted(known)) or "decoder.width and decoder.blocks"
        raise ValueError(f"compress.{min(asked - known)}: --method {config.method} takes {takes}")
    if "student_config" in asked and len(asked) > 1:
        raise ValueError("compress.student_config: takes no compress.factor or compress.blocks beside it")
    if config.method == "compression" and not asked:
        raise ValueError("compress: --method compression takes one of --compress 2, compress.blocks, compress.student_config")
    if asked and config.lora.enabled:
        raise ValueError(
            "lora.enabled: a smaller network has weights of its own; takes false with compress (a LoRA of it is a run of "
            "its own, with the smaller student for a teacher)"
        )
    if asked:
        config.trainer_of("compression")


def _halves_to_its_steps(config: DistillConfig) -> None:
    settings, counts = config.progressive, config.halved_to()
    if not set(config.steps) <= set(counts):
        raise ValueError(
            f"steps {config.steps}: takes some of {counts}, which progressive.start_steps {settings.start_steps} is halved to"
        )
    names = ["imitation", *map(str, counts)]
    for name in settings.stages:
        if name not in names:
            raise ValueError(f"progressive.stages.{name} is not known; takes one of {', '.join(names)}")
        config.trainer_of(name)
    if (grid := settings.grid) is None:
        return
    if not grid or min(grid) < 0 or sorted(set(grid), reverse=True) != grid:
        raise ValueError(f"progressive.grid {grid}: takes falling timesteps, such as [999, 749, 499, 249]")
    if len(grid) not in counts or any(two != 2 * one for two, one in pairwise([settings.start_steps, *counts])):
        raise ValueError(
            f"progressive.grid of {len(grid)} timesteps: takes as many as one of the students makes steps, {counts}, where "
            "each makes half as many as the one before"
        )


def _has_as_many_timesteps(config: DistillConfig) -> None:
    most = config.consistency.num_ddim_timesteps
    if config.method == "consistency" and max(config.steps) > most:
        raise ValueError(f"steps {config.steps}: takes at most consistency.num_ddim_timesteps ({most})")
    if config.consistency.num_phases > most:
        raise ValueError(f"consistency.num_phases {config.consistency.num_phases}: takes at most num_ddim_timesteps ({most})")


def _is_guided(config: DistillConfig) -> None:
    if config.lora.enabled and config.guidance.mode == "embedded":
        raise ValueError("guidance.mode 'embedded' adds an input that no LoRA file can carry; takes 'baked' or 'cfg' with lora")
    if config.aligns and config.guidance.mode == "cfg":
        raise ValueError(
            "guidance.mode 'cfg': alignment learns from guided latents, which are to be guided once more; takes 'baked' or "
            "'embedded'"
        )
    low, high = config.guidance.range
    if not 1 <= low < high:
        raise ValueError(f"guidance.range {low}, {high}: takes 1 <= low < high")


def _aligns(config: DistillConfig) -> None:
    align = config.align
    if align.weight != 0 and config.method in ("compression", "decoder", "gan"):
        raise ValueError(f"align.weight {align.weight}: --method {config.method} learns from no trajectories; takes 0")
    # further students are students of alignment alone, all of whose weights are trained
    asked = {"generations": align.generations > 1, "partner": align.partner != "none"}
    for name in (name for name, is_asked in asked.items() if is_asked):
        value = getattr(align, name)
        if config.method != "latent_alignment":
            raise ValueError(f"align.{name} {value}: takes --method latent_alignment, not {config.method}")
        if config.lora.enabled:
            raise ValueError(f"align.{name} {value}: trains all weights; takes lora.enabled=false")
    if align.teachers and not config.aligns:
        raise ValueError(
            "align.teachers: paint the trajectories of alignment; takes --method latent_alignment, or align.weight above 0 "
            "beside consistency or progressive"
        )
    if config.aligns and align.semantic.clip != 0 and config.dtype == "float16":
        raise ValueError(
            "align.semantic.clip: its gradients pass the teacher's decoder, which overflows in dtype 'float16'; takes "
            "'float32' or 'bfloat16'"
        )
