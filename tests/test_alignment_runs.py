"""Latent alignment, alone and beside other methods, as `gendistill.distill(...)` runs it."""

import json

import pytest
import torch

from gendistill.config import load_config
from gendistill.distill import distill
from gendistill.samplers import FewStepSampler


@pytest.fixture
def settings(tiny_folder, tmp_path):
    """settings(name, **changes by dotted name) of a data-free run in tmp_path/name."""
    (tmp_path / "prompts.txt").write_text("food\nemoji of animals\n")

    def make(name, **changes):
        given = {
            "teacher": str(tiny_folder),
            "method": "latent_alignment",
            "out": str(tmp_path / name),
            "device": "cpu",
            "steps": [2, 1],
            "solvers": ["ddim"],
            "data.prompts": str(tmp_path / "prompts.txt"),
            "data.cache": str(tmp_path / "cache"),
            "data.num_synthetic": 4,
            "data.synthetic_steps": 2,
            "align.trajectories": 6,
            "align.trajectory_steps": 4,
            "trainer.max_steps": 4,
            "trainer.batch_size": 4,
            "trainer.log_every": 1,
            "trainer.checkpoint_every": 2,
            "trainer.num_validation": 4,
            "trainer.trackers": [],
        }
        return load_config(None, given | {name.replace("__", "."): value for name, value in changes.items()})

    return make


def logged(run, key):
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [line[key] for line in lines if key in line]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lora__enabled": True},
        {"guidance__mode": "embedded", "guidance__range": [1, 4]},
        {"align__own_share": 1.0, "align__match__perceptual": 0.1, "align__distribution__patches": 1.0},
    ],
    ids=["full", "lora", "slider", "own points and more terms"],
)
def test_a_student_is_trained_and_opens_in_few_steps(settings, tmp_path, changes):
    result = distill(settings("run", **changes))
    assert all(torch.tensor(logged(tmp_path / "run", "loss")).isfinite())
    assert len(logged(tmp_path / "run", "pseudo_huber")) == 4
    sampler = FewStepSampler.from_pretrained(result.student_folder)
    assert sampler.spec.method == "latent_alignment"
    pictures = torch.cat(list(sampler.pictures(["food"], [0], num_inference_steps=1)))
    assert pictures.shape == (1, 3, 32, 32)
    assert "6 trajectories of the teacher" in (result.student_folder / "README.md").read_text()


def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(settings):
    terms = {"align__own_share": 0.5, "align__distribution__sliced_wasserstein": 1.0}
    at_once = distill(settings("one", **terms))
    distill(settings("other", trainer__max_steps=2, **terms))
    resumed = distill(settings("other", **terms), resume=True)
    for name, tensor in at_once.networks.trained.items():
        assert torch.equal(tensor, resumed.networks.trained[name]), name


def test_beside_consistency_it_counts_by_its_weight(settings, tmp_path):
    distill(settings("run", method="consistency", align__weight={0.4: 0, 0.5: 2}))
    own, aligned, losses = (logged(tmp_path / "run", name) for name in ("own", "align", "loss"))
    assert len(losses) == 4
    assert len(aligned) == 2
    assert losses[2] == pytest.approx(own[0] + 2 * aligned[0], rel=1e-5)


def test_beside_halving_it_counts_in_the_stages_that_make_a_student(settings, tmp_path):
    distill(settings("run", method="progressive", progressive__start_steps=4, align__weight=1.0, steps=[1]))
    assert len(logged(tmp_path / "run" / "stages" / "1", "align")) == 4
    assert logged(tmp_path / "run" / "stages" / "2", "align") == []
