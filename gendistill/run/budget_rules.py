"""The rules by which `distill --budget` chooses the settings of a run: one table, which the guide prints with its evidence.

Of the rules that decide one thing, the first that applies counts. The numbers are from measurements with tiny-sd on two CPU
cores where the evidence names them; the others are marked as not measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

MIN_TRAJECTORIES = 4096  # that make latent alignment worth its trajectories
MAX_TRAJECTORIES = 65536
VISITS = 12  # of each trajectory in training, at most
TRAJECTORY_STEPS = 16
SYNTHETIC = (256, 4096)  # images that the teacher generates where there are only prompts: fewest and most
SYNTHETIC_FRACTION = 0.25  # of the time of data and training
BATCHES = (32, 16, 8, 4)  # the first with which MIN_STEPS steps fit into the time
MIN_STEPS = 150
SAFETY = 0.06  # fraction of the budget that nothing is planned for
MIN_EVALUATED = 500  # images of an evaluation, at least
EVALUATION_FRACTION = 1 / 3  # of the budget, at most, but for the smallest evaluation
VALIDATION_FRACTION = 0.12  # of the training time, for all validations but the first and the last
VALIDATED = (600, 300, 150, 64)  # images of a validation: the first of which one takes a tenth of the training time at most
SOLVER_IMAGES = 2000  # on which the solver is chosen, where this takes a tenth of the training time at most
LARGE = 50_000_000  # parameters of a network with the learning rates of a large one


@dataclass(frozen=True)
class Facts:
    """What the rules know of a teacher, a machine and a purpose.

    Attributes:
        steps: step counts that the student is for, the main one first.
        device: cuda, mps or cpu.
        bf16: whether the device computes in bfloat16 by instructions of its own.
        transformer: whether the denoiser is a transformer.
        guided: whether the teacher has classifier-free guidance.
        embedded: whether the teacher is one of the embedded ones.
        parameters: of the denoiser.
        trajectories: trajectories that the teacher generates in half of the time of data and training.
        lora: whether a LoRA is trained.
    """

    steps: tuple[int, ...]
    device: str
    bf16: bool
    transformer: bool
    guided: bool
    embedded: bool
    parameters: int
    trajectories: float = 0.0
    lora: bool = False


@dataclass(frozen=True)
class Rule:
    """What is set in a case.

    Attributes:
        decides: the subject, one of several rules for it.
        case: when the rule applies, in words.
        evidence: the measurement behind it, or that there is none.
        applies: whether it does.
        settings: by dotted name.
    """

    decides: str
    case: str
    evidence: str
    applies: Callable[[Facts], bool] = field(repr=False)
    settings: dict[str, Any] = field(default_factory=dict)


ALWAYS: Callable[[Facts], bool] = lambda facts: True  # noqa: E731

RULES: tuple[Rule, ...] = (
    Rule(
        "method",
        "a student of one step alone",
        "tiny-sd, 4 minutes of one thread: consistency closes 0.90 ± 0.01 of the gap at 1 call, alignment 0.80 ± 0.02; "
        "in 54 minutes consistency 0.97, alignment 0.93 in 60",
        lambda facts: max(facts.steps) == 1,
        {"method": "consistency", "consistency.ema_decay": 0.95},
    ),
    Rule(
        "method",
        f"half of the time gives {MIN_TRAJECTORIES:,} trajectories of {TRAJECTORY_STEPS} steps; for tiny-sd on two "
        "cores a budget of some 15 minutes",
        "tiny-sd: alignment with 16,384 trajectories closes 0.953, 0.976 and 0.930 of the gap at 4, 2 and 1 calls in an hour, "
        "consistency 0.79, 0.97 and 0.97",
        lambda facts: facts.trajectories >= MIN_TRAJECTORIES,
        {"method": "latent_alignment", "align.trajectory_steps": TRAJECTORY_STEPS, "align.start_fraction": 0.4},
    ),
    Rule(
        "method",
        "otherwise",
        "tiny-sd: consistency closes 0.85, 0.96 and 0.93 of the gap at 4, 2 and 1 calls in 7 minutes",
        ALWAYS,
        {"method": "consistency", "consistency.ema_decay": 0.95},
    ),
    Rule(
        "guidance",
        "an embedded teacher, long enough for alignment",
        "tiny-sd: its own distance is smallest at 2; students aligned at 3 close at most 0.92 of the gap, at 2 0.953",
        lambda facts: facts.guided and facts.embedded and facts.trajectories >= MIN_TRAJECTORIES and max(facts.steps) > 1,
        {"guidance.scale": 2.0},
    ),
    Rule(
        "guidance",
        "any other teacher with guidance",
        "tiny-sd by consistency, the setting of `make demo`; not measured for other teachers",
        lambda facts: facts.guided,
        {"guidance.scale": 3.0},
    ),
    Rule(
        "learning rate",
        f"all weights of a network of up to {LARGE // 10**6} M parameters",
        "tiny-sd, the setting of `make demo`, `make full` and `make align`",
        lambda facts: not facts.lora and facts.parameters <= LARGE,
        {"trainer.learning_rate": 4e-4, "trainer.lr_schedule": "cosine"},
    ),
    Rule(
        "learning rate",
        "a LoRA",
        "the setting of the guide to fine-tunes; not measured on large teachers",
        lambda facts: facts.lora,
        {"trainer.learning_rate": 1e-4, "trainer.lr_schedule": "cosine"},
    ),
    Rule(
        "learning rate",
        "all weights of a larger network",
        "not measured; that of Luo et al. 2023 for Stable Diffusion",
        ALWAYS,
        {"trainer.learning_rate": 8e-6, "trainer.lr_schedule": "cosine"},
    ),
    Rule(
        "precision",
        "a GPU with bfloat16",
        "not measured; the teacher in bfloat16, the trained weights in float32",
        lambda facts: facts.device == "cuda" and facts.bf16,
        {"dtype": "bfloat16", "trainer.mixed_precision": "bf16"},
    ),
    Rule(
        "precision",
        "another CUDA GPU",
        "not measured; the teacher in float16, the trained weights in float32 with scaled losses",
        lambda facts: facts.device == "cuda",
        {"dtype": "float16", "trainer.mixed_precision": "fp16"},
    ),
    Rule(
        "precision",
        "a transformer on a CPU with bfloat16 instructions",
        "faster than float32 for transformers, slower for convolutions",
        lambda facts: facts.device == "cpu" and facts.bf16 and facts.transformer,
        {"trainer.mixed_precision": "bf16"},
    ),
    Rule("precision", "any other device", "float32 everywhere, as all figures of tiny-sd", ALWAYS, {}),
    Rule(
        "solvers",
        "always, as far as the teacher's family has them",
        "a run chooses the solver of its best checkpoint by validation",
        ALWAYS,
        {"solvers": ["ddim", "tcd", "lcm"]},
    ),
)

# Settings that are added one after the other until the predicted memory of a step fits, with what they are for.
MEMORY_STEPS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("all weights", {}),
    ("a LoRA of rank 64", {"lora.enabled": True, "lora.rank": 64}),
    ("gradient checkpointing", {"trainer.gradient_checkpointing": True}),
    ("a batch in 4 parts", {"trainer.gradient_accumulation_steps": 4}),
    ("a batch in 16 parts", {"trainer.gradient_accumulation_steps": 16}),
    ("one image at a time", {"trainer.gradient_accumulation_steps": BATCHES[0]}),
    ("weights of the frozen base in 8 bits", {"lora.quantization": "int8-weights"}),
    ("weights of the frozen base in 4 bits", {"lora.quantization": "nf4-weights"}),
)


def chosen_rules(facts: Facts) -> Iterator[Rule]:
    """The first rule of each subject that applies, in the order of the table."""
    decided: set[str] = set()
    for rule in RULES:
        if rule.decides not in decided and rule.applies(facts):
            decided.add(rule.decides)
            yield rule


def chosen_settings(facts: Facts) -> dict[str, Any]:
    """The settings of `chosen_rules` by dotted name."""
    return {name: value for rule in chosen_rules(facts) for name, value in rule.settings.items()}


def num_trajectories(seconds: float, each: float, step: float, batch: int) -> int:
    """Trajectories for a training with `seconds` for both: half of the time, or more of it where every trajectory would be
    visited more than `VISITS` times.

    Args:
        each: seconds of a trajectory.
        step: seconds of an optimizer step on `batch` samples.
    """
    count = max(seconds / 2 / each, seconds / (each + VISITS * step / batch))
    return max(batch, min(MAX_TRAJECTORIES, int(count)))
