"""Every method in every precision: one optimizer step of tiny models by the real trainer, and the gradients it stepped on.

`scripts/gpu_check.py` runs the same cases on a GPU.
"""

import copy
import json
from dataclasses import dataclass
from itertools import product

import torch
from accelerate.state import AcceleratorState
from row_cache import write_cache
from tiny_gans import PICTURE, tiny_method, tiny_pictures, tiny_translator
from tiny_training import tiny_data

from gendistill.data.decoded import DecodedData
from gendistill.data.trajectories import generate_trajectories
from gendistill.diffusion.teacher import load_teacher
from gendistill.gan.architectures.translation import ResNetTranslator
from gendistill.methods import Stage, denoiser_stages, recipe_of
from gendistill.methods.decoder import AutoencoderContext
from gendistill.methods.denoiser_method import DenoiserContext, DenoiserMethod
from gendistill.methods.fake_score import FakeScore
from gendistill.run.config import load_config
from gendistill.training.trainer import Trainer

ADVERSARIAL = {"align.distribution.adversarial": 0.1, "align.match.pseudo_huber": 0.0, "align.match.l2": 1.0}
ALIGNED = {"method": "latent_alignment", "align.match.perceptual": 0.5, "align.on_policy_fraction": 1.0}
HALVED = {"method": "progressive", "progressive.start_steps": 4, "progressive.prediction_type_steps": 0}
MATCHED = {"method": "distribution_matching", "distribution_matching.fake_score.steps": 1}
METHODS = {
    "consistency": {"consistency.target": "student", "consistency.loss": "l2", "guidance.mode": "cfg"},
    "consistency, embedded guidance": {"consistency.loss": "l2", "guidance.mode": "embedded"},
    "consistency, auxiliary alignment": ADVERSARIAL
    | {"consistency.loss": "l2", "align.weight": 1.0, "align.match.perceptual": 0.1},
    "progressive": HALVED,
    "progressive, embedded guidance": HALVED | {"guidance.mode": "embedded"},
    "latent_alignment": ALIGNED | ADVERSARIAL,
    "latent_alignment, two students": ALIGNED | ADVERSARIAL | {"align.peer": "mutual"},
    "distribution_matching": MATCHED,
    "distribution_matching, segments": MATCHED
    | {"distribution_matching.segments": True, "guidance.mode": "embedded", "solvers": ["tcd"]},
    "distribution_matching, adversarial": MATCHED
    | {"adversarial.weight": 0.1, "adversarial.features": "fake_score", "adversarial.loss": "logistic"},
    "adversarial": {"method": "adversarial", "adversarial.r1": 0.01},
    "feature_matching": {"method": "feature_matching", "feature_matching.bank": 8},
    "compression": {"method": "compression"},
    "decoder": {"method": "decoder", "decoder.width": 8, "decoder.blocks": 1},
    "gan": {"method": "gan"},
}
FULL_ONLY = {
    "consistency, embedded guidance",
    "progressive, embedded guidance",
    "latent_alignment, two students",
    "distribution_matching, segments",
    "compression",
    "decoder",
    "gan",
}
NOT_CHECKPOINTED = {"decoder", "gan"}
PRECISIONS = {  # trainer.mixed_precision, dtype of the teacher
    "float32": ("no", "float32"),
    "bf16": ("bf16", "float32"),
    "fp16": ("fp16", "float32"),
    "bfloat16 teacher": ("no", "bfloat16"),
    "float16 teacher": ("no", "float16"),
    "bf16, float16 teacher": ("bf16", "float16"),
    "fp16, bfloat16 teacher": ("fp16", "bfloat16"),
}
BATCH = 4


@dataclass(frozen=True)
class Case:
    method: str
    lora: bool = False
    precision: str = "float32"
    accumulation: int = 1
    checkpointing: bool = False

    @property
    def reference(self):
        """The same step in float32, of the unsplit batch, with all activations kept."""
        return Case(self.method, self.lora)

    @property
    def mixed_precision(self):
        return PRECISIONS[self.precision][0]

    def __str__(self):
        names = [self.method, "LoRA" if self.lora else "full", self.precision]
        names += [f"{self.accumulation} parts"] if self.accumulation > 1 else []
        return ", ".join(names + ["recomputed"] * self.checkpointing)


@dataclass(frozen=True)
class Step:
    """The values that a stage logged, the gradients of each of its optimizer steps, and what it trained."""

    logs: dict
    gradients: list  # (optimizer, {parameter: gradient or None}), unscaled
    method: object
    trainer: Trainer


def supported(case):
    if case.method in FULL_ONLY and (case.lora or (case.method == "gan" and case.precision.endswith("teacher"))):
        return False
    if case.method == "feature_matching" and (case.accumulation > 1 or "float16 teacher" in case.precision.split(", ")):
        return False  # it compares the samples of a part with each other, and its decoder overflows in float16
    return not (case.checkpointing and case.method in NOT_CHECKPOINTED)


def all_cases():
    """The full product of what the methods support."""
    cases = (Case(*values) for values in product(METHODS, (False, True), PRECISIONS, (1, 2), (False, True)))
    return [case for case in cases if supported(case) and case != case.reference]


def pairwise_cases():
    """A few cases with one half precision, in which every pair of two settings occurs that occurs in any of these."""

    def pairs(case):
        values = (case.method, case.lora, case.precision, case.accumulation, case.checkpointing)
        return {((i, values[i]), (k, values[k])) for i in range(5) for k in range(i)}

    remaining, chosen = [case for case in all_cases() if "," not in case.precision], []
    missing = set().union(*map(pairs, remaining))
    while missing:
        best = max(remaining, key=lambda case: len(pairs(case) & missing))
        chosen.append(best)
        missing -= pairs(best)
    return chosen


class Matrix:
    """Runs cases on a device.

    Args:
        teacher_folder: a tiny pipeline.
        place: an empty folder.
    """

    def __init__(self, teacher_folder, place, device="cpu"):
        self.teacher_folder, self.place, self.device = teacher_folder, place, device
        self.latents = tiny_data(teacher_folder, place / "cache")
        self.teachers, self.references = {}, {}
        self.count = 0

    def reference(self, case):
        if case.reference not in self.references:
            self.references[case.reference] = self.steps(case.reference)
        return self.references[case.reference]

    def steps(self, case, **settings):
        """One optimizer step of each stage of a case; `settings` of TrainerConfig."""
        AcceleratorState._reset_state(True)
        config = self._config(case, settings)
        return [self._step(stage, data, config) for stage, data in self._stages(case, config)]

    def _config(self, case, settings):
        mixed_precision, dtype = PRECISIONS[case.precision]
        student = self.place / "half.json"
        student.write_text('{"block_out_channels": [8, 16]}')
        trainer = {
            "max_steps": 1,
            "batch_size": BATCH,
            "gradient_accumulation_steps": case.accumulation,
            "gradient_checkpointing": case.checkpointing,
            "mixed_precision": mixed_precision,
            "warmup_steps": 0,
            "learning_rate": 1e-5,
            "max_grad_norm": 1e9,
            "log_every": 1,
            "trackers": [],
        }
        given = {"teacher": str(self.teacher_folder), "device": self.device, "dtype": dtype, "steps": [2], "lora.rank": 4}
        given |= {"lora.enabled": case.lora, "consistency.num_ddim_timesteps": 10, "compression.features.attention": 1.0}
        given |= {"compress.student_config": str(student)} if case.method == "compression" else {}
        given |= METHODS[case.method] | {f"trainer.{name}": value for name, value in (trainer | settings).items()}
        return load_config(None, given)

    def _stages(self, case, config):
        if case.method == "gan":
            yield from self._gan_stages(config)
            return
        recipe, (teacher, unconditional) = recipe_of(config), self._teacher(config.dtype)
        torch.manual_seed(0)  # not earlier: transformers 4 draws random weights while it opens a teacher
        if recipe.teaches == "autoencoder":
            data = self._decoded()
            yield from ((stage, data) for stage in recipe.stages(AutoencoderContext(config, teacher.codec)))
            return
        denoiser = teacher.denoiser.with_network(copy.deepcopy(teacher.network))
        context = DenoiserContext(config, teacher.family, denoiser, unconditional, opened=teacher, data=self.latents)
        data = self._trajectories(config) if recipe.data_needs(config) == "trajectories" else self.latents
        for stage in denoiser_stages(context):
            if case.lora:
                randomise(stage.method)
            move_fake_scores(stage.method)
            yield stage, data

    def _gan_stages(self, config):
        data = tiny_pictures(self.place / "pictures", PICTURE)
        losses = {"adversarial": 1, "discriminator__steps": 2, "discriminator__r1": 0.1, "peer": "student"}
        losses |= {"output__perceptual": 0.1, "features__hints": 1.0}
        config_file = self.place / "translator.json"
        config_file.write_text('{"channels": 4, "num_blocks": 1}')
        student = {"compress.student": f"{ResNetTranslator.__module__}:ResNetTranslator"}
        student |= {"compress.student_config": str(config_file)}
        method = tiny_method(gan=tiny_translator(), data=data, more=student, **losses)
        for module in (*method.trained_modules().values(), method.networks.teacher.network, method.networks.average.network):
            module.to(self.device)
        yield Stage(method, config.trainer), data

    def _teacher(self, dtype):
        """The teacher in a dtype, and its encoded empty prompt."""
        if dtype not in self.teachers:
            teacher = load_teacher(self.teacher_folder, dtype=getattr(torch, dtype), device=self.device)
            with torch.no_grad():  # the same weights in each dtype, so that a pruned student keeps the same channels
                for parameter in teacher.network.parameters():
                    parameter.copy_(parameter.bfloat16())
            self.teachers[dtype] = teacher, teacher.unconditional()
        return self.teachers[dtype]

    def _trajectories(self, config):
        (teacher, _), cache = self._teacher("float32"), str(self.place / "trajectories")
        return generate_trajectories(teacher, self.latents, config.guidance, cache, count=8, steps=4)

    def _decoded(self):
        random = torch.Generator().manual_seed(0)
        images = torch.randint(0, 256, (20, 3, 32, 32), dtype=torch.uint8, generator=random)
        rows = {"images": images, "decoded": images.flip(0), "latents": torch.randn(20, 4, 8, 8, generator=random)}
        return DecodedData(write_cache(self.place / "decoded", [rows]))

    def _step(self, stage, data, config):
        self.count += 1
        folder, gradients = self.place / f"run-{self.count}", []
        trainer = Trainer(stage.method, data, stage.trainer, folder, seed=5, cpu=self.device == "cpu")
        if trainer.accelerator.scaler is not None:  # at 65536 the gradient of a bias overflows, which is another test
            trainer.accelerator.scaler = torch.amp.GradScaler(self.device, init_scale=1024.0)
        clip = trainer.accelerator.clip_grad_norm_

        def recorded(parameters, max_norm):
            parameters = list(parameters)
            groups = stage.method.trained_parameters().items()
            name, group = next((name, group) for name, group in groups if next(iter(group.values())) is parameters[0])
            gradients.append((name, {path: copied(parameter.grad) for path, parameter in group.items()}))
            return clip(parameters, max_norm)

        trainer.accelerator.clip_grad_norm_ = recorded
        trainer.train()
        lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        logs = next(line for line in lines if "step" in line and "data" not in line and "validation" not in line)
        return Step(logs, gradients, stage.method, trainer)


def copied(gradient):
    return None if gradient is None else gradient.detach().float().cpu().clone()


@torch.no_grad()
def randomise(method):
    """Random weights for all adapters: those of an untrained one give half of its tensors a gradient of zero."""
    assert isinstance(method, DenoiserMethod)
    fill = torch.Generator().manual_seed(1)
    for networks in method.students.values():
        for parameter in networks.trained.values():
            parameter.copy_(0.05 * torch.randn(parameter.shape, generator=fill))
        networks.update_average(0.0)


@torch.no_grad()
def move_fake_scores(method):
    """Fake scores other than the teacher, from which they are initialised: the difference of equal scores is rounding alone."""
    fill = torch.Generator().manual_seed(2)
    for critic in getattr(method, "critics", []):
        for parameter in critic.parameters.values() if isinstance(critic, FakeScore) else ():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=fill).to(parameter.device))


def whole(gradients):
    """All gradients of an optimizer step as one vector."""
    return torch.cat([gradient.flatten() for gradient in gradients.values()])


def differences(steps, expected):
    """The relative differences of the losses and of the gradients' vectors of two runs of a case, by name."""
    found = {}
    for number, (step, other) in enumerate(zip(steps, expected, strict=True)):
        for name in other.logs:
            if "loss" in name or name == "latents":
                found[f"{number} {name}"] = abs(step.logs[name] - other.logs[name]) / max(abs(other.logs[name]), 1e-3)
        assert [name for name, _ in step.gradients] == [name for name, _ in other.gradients]
        for order, ((name, one), (_, two)) in enumerate(zip(step.gradients, other.gradients, strict=True)):
            one, two = whole(one), whole(two)
            found[f"{number} gradient {order} of {name}"] = float((one - two).norm() / two.norm())
    return found


def require_all_gradients(steps):
    """Every trained tensor has a finite gradient in each step of its optimizer, and not all of them are 0."""
    for step in steps:
        assert {name for name, _ in step.gradients} == set(step.method.trained_parameters())
        for name, gradients in step.gradients:
            missing = [path for path, gradient in gradients.items() if gradient is None]
            assert not missing, f"{name}: no gradient for {missing[:5]} and more, {len(missing)} of {len(gradients)}"
            assert all(gradient.isfinite().all() for gradient in gradients.values()), name
            zeros = [path for path, gradient in gradients.items() if not gradient.any()]
            assert len(zeros) < len(gradients) / 2, f"{name}: {len(zeros)} of {len(gradients)} gradients are 0"
