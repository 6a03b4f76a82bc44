"""Latent alignment, alone and beside other methods, as `gendistill.distill(...)` runs it."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import logged, settings_of

from gendistill.run.config import load_config
from gendistill.run.distill import distill
from gendistill.samplers import FewStepSampler


@pytest.fixture
def settings(tiny_folder, tmp_path):
    """settings(name, **changes) of a data-free run in tmp_path/name."""
    few = {"align__trajectories": 6, "align__trajectory_steps": 4, "trainer__batch_size": 4}

    def make(name, **changes):
        return settings_of(tmp_path, tiny_folder, name, **{"method": "latent_alignment", "steps": [2, 1], **few, **changes})

    return make


def kept(run, step):
    """All tensors of a run's checkpoint: weights, averages and what the optimizers remember."""
    folder = run / "checkpoints" / f"step-{step:08d}"
    return {(file.name, name): of for file in folder.glob("*.safetensors") for name, of in load_file(file).items()}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"lora__enabled": True},
        {"guidance__mode": "embedded", "guidance__range": [1, 4]},
        {"align__on_policy_fraction": 1.0, "align__match__perceptual": 0.1, "align__distribution__patches": 1.0},
        {"align__distribution__adversarial": 0.1, "trainer__gradient_checkpointing": True},
        {"lora__enabled": True, "align__distribution__adversarial": 0.1, "align__semantic__clip": 0.1},
    ],
    ids=["full", "lora", "slider", "own points and more terms", "adversarial", "clip"],
)
def test_a_student_is_trained_and_opens_in_few_steps(settings, tmp_path, changes):
    result = distill(settings("run", **changes))
    assert all(torch.tensor(logged(tmp_path / "run", "loss")).isfinite())
    assert len(logged(tmp_path / "run", "pseudo_huber")) == 4
    sampler = FewStepSampler.from_pretrained(result.student_folder)
    assert sampler.spec.method == "latent_alignment"
    images = torch.cat(list(sampler.images(["food"], [0], num_inference_steps=1)))
    assert images.shape == (1, 3, 32, 32)
    assert "6 trajectories of the teacher" in (result.student_folder / "README.md").read_text()


@pytest.mark.parametrize(
    "terms",
    [
        {"align__on_policy_fraction": 0.5, "align__distribution__sliced_wasserstein": 1.0},
        pytest.param({"align__distribution__adversarial": 0.5}, marks=pytest.mark.slow),
        {"align__distribution__adversarial": 0.5, "method": "consistency", "align__weight": 1.0},
        {"align__peer": "mutual", "align__on_policy_fraction": 0.5, "align__distribution__adversarial": {0: 0, 2: 0.5}},
    ],
    ids=["sets", "adversarial", "adversarial beside consistency", "mutual"],
)
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(settings, tmp_path, terms):
    distill(settings("one", **terms))
    distill(settings("other", trainer__max_steps=2, **terms))
    distill(settings("other", **terms), resume=True)
    at_once, resumed = (kept(tmp_path / name, 4) for name in ("one", "other"))
    assert at_once.keys() == resumed.keys()
    assert any(name.startswith("discriminator.") for _, name in at_once) == ("align__distribution__adversarial" in terms)
    for name, tensor in at_once.items():
        assert torch.equal(tensor, resumed[name]), name


def test_beside_consistency_it_counts_by_its_weight(settings, tmp_path):
    distill(settings("run", method="consistency", align__weight={0.4: 0, 0.5: 2}))
    own, aligned, losses = (logged(tmp_path / "run", name) for name in ("own", "align", "loss"))
    assert len(losses) == 4
    assert len(aligned) == 2
    assert losses[2] == pytest.approx(own[0] + 2 * aligned[0], rel=1e-5)


def test_a_discriminator_learns_beside_the_student_in_the_steps_in_which_it_counts(settings, tmp_path):
    distill(settings("run", method="consistency", align__weight=1.0, align__distribution__adversarial={0.4: 0, 0.5: 0.2}))
    assert len(logged(tmp_path / "run", "pseudo_huber")) == 4
    assert len(logged(tmp_path / "run", "adversarial")) == 2
    assert len(logged(tmp_path / "run", "discriminator_loss")) == 2


def test_beside_halving_it_counts_in_the_stages_that_make_a_student(settings, tmp_path):
    distill(settings("run", method="progressive", progressive__start_steps=4, align__weight=1.0, steps=[1]))
    assert len(logged(tmp_path / "run" / "stages" / "1", "align")) == 4
    assert logged(tmp_path / "run" / "stages" / "2", "align") == []


def test_two_students_learn_from_each_other_and_differ(settings, tmp_path):
    result = distill(settings("run", align__peer="mutual", trainer__max_steps=2))
    for term in ("mutual", "peer_mutual", "peer_pseudo_huber"):
        assert len(logged(tmp_path / "run", term)) == 2
    tensors = {name: tensor for (file, name), tensor in kept(tmp_path / "run", 2).items() if file == "weights.safetensors"}
    for whose in ("student", "average"):
        name = "conv_in.weight"
        other = {"student": f"peer.{name}", "average": f"buffer.peer_average.{name}"}[whose]
        assert not torch.equal(tensors[f"{whose}.{name}"], tensors[other])
    exported = load_file(result.student_folder / "unet" / "diffusion_pytorch_model.safetensors")["conv_in.weight"]
    assert torch.equal(exported, tensors["average.conv_in.weight"].half())


def test_a_generation_learns_from_the_one_before_it_and_goes_on_where_it_was_stopped(settings, tmp_path):
    born_again = {"align__generations": 2, "trainer__max_steps": 2, "trainer__learning_rate": 0.01}
    at_once = distill(settings("one", **born_again))
    stages = tmp_path / "one" / "stages"
    first, second = (logged(stages / f"generation-{number}", "pseudo_huber") for number in (1, 2))
    assert len(first) == len(second) == 2
    assert first[0] != second[0]
    assert (stages / "generation-1" / "student" / "model_index.json").is_file()
    assert at_once.student_folder == tmp_path / "one" / "student"
    shutil.copytree(tmp_path / "one", tmp_path / "other")
    shutil.rmtree(tmp_path / "other" / "stages" / "generation-2" / "checkpoints")
    with pytest.raises(ValueError, match="holds student but no checkpoint of it to resume from"):
        distill(settings("other", **born_again), resume=True)
    shutil.rmtree(tmp_path / "other" / "student")
    resumed = distill(settings("other", **born_again), resume=True)
    for name, tensor in at_once.networks.trained.items():
        assert torch.equal(tensor, resumed.networks.trained[name]), name


@pytest.mark.parametrize("setting", [{"align.generations": 2}, {"align.peer": "mutual"}])
def test_further_students_are_refused_where_they_cannot_be_trained(setting):
    with pytest.raises(ValueError, match=r"align\.(generations 2|peer mutual): expects --method latent_alignment"):
        load_config(None, setting)
    with pytest.raises(ValueError, match=r"align\..*: trains all weights; expects lora.enabled=false"):
        load_config(None, {"method": "latent_alignment", "lora.enabled": True, **setting})
