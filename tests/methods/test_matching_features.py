"""Feature matching of a student: its images come nearer to real ones, alone and in addition to another method."""

import json

import pytest
import torch
from tiny_runs import settings_of
from tiny_training import tiny_data

from gendistill.diffusion.guidance import Guidance, GuidanceConfig
from gendistill.diffusion.teacher import load_teacher
from gendistill.diffusion.trained_networks import full_networks
from gendistill.losses.feature_matching import FEATURE_MATCHING, log_similarity
from gendistill.methods.image_tower import ImageTower
from gendistill.methods.matching_features import (
    FeatureMatching,
    FeatureMatchingConfig,
    bank_of,
    condition_vectors,
    default_features,
)
from gendistill.methods.student_samples import StudentSampler
from gendistill.run.config import load_config
from gendistill.run.distill import distill
from gendistill.runtime.random import PerSampleRandom
from gendistill.samplers.conditioning import Conditioning


@pytest.fixture(scope="module")
def parts(tiny_folder, tmp_path_factory):
    """A tiny teacher, its encoded data, and tiny-clip."""
    teacher = load_teacher(tiny_folder)
    return (
        teacher,
        tiny_data(tiny_folder, tmp_path_factory.mktemp("features")),
        ImageTower.called("assets/tiny-clip", "x", "cpu"),
    )


def test_images_larger_than_those_of_the_embedded_teachers_are_compared_by_a_network_that_sees_them():
    assert [default_features((edge, 32)) for edge in (32, 64, 65, 1024)] == ["assets/tiny-clip"] * 2 + ["clip"] * 2


@pytest.mark.parametrize("edge", [32, 64])
def test_images_in_bfloat16_of_any_size_have_features_with_gradients(parts, edge):
    images = torch.rand(2, 3, edge, edge, dtype=torch.bfloat16, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        parts[2](images).sum().backward()
    assert images.grad.isfinite().all()
    assert images.grad.any()


@pytest.mark.parametrize("loss", FEATURE_MATCHING)
def test_the_loss_is_that_of_the_features_of_decoded_samples(parts, loss):
    teacher, data, tower = parts
    config = FeatureMatchingConfig(loss=loss, bank=12, augment=[])
    bank = bank_of(data, teacher, tower, config, 0)
    assert bank.features.shape[0] == bank.conditions.shape[0] == 12
    networks = full_networks(teacher.denoiser)
    sampler = StudentSampler(networks, Guidance(teacher.unconditional(), GuidanceConfig()), [2, 1])
    matching = FeatureMatching(config, sampler, teacher.codec, tower, bank)
    batch = data.batch(torch.arange(4), PerSampleRandom(0, 0, 0, 4))

    def result():
        updates = matching.updates(batch, 0, PerSampleRandom(0, 1, 0, 4))
        with pytest.raises(StopIteration) as stopped:
            next(updates)
        return stopped.value.value[0]

    found = result()
    samples = sampler.generate(batch, PerSampleRandom(0, 1, 0, 4), learning=False)
    features = tower(teacher.codec.decode_unclamped(samples.x_0))
    conditions = condition_vectors(samples.conditioning, features, 0)
    similarities = [log_similarity(conditions, other, bank.condition_scale) for other in (conditions, bank.conditions)]
    torch.testing.assert_close(found, FEATURE_MATCHING[loss](features, bank.features, *similarities, bank.scale))
    optimizer = torch.optim.SGD(networks.trained.values(), 1.0)
    found.backward()
    assert all(parameter.grad is None for parameter in [*tower.network.parameters(), *teacher.codec.vae.parameters()])
    torch.nn.utils.clip_grad_norm_(networks.trained.values(), 0.01)
    optimizer.step()
    if loss == "mmd":
        assert result() < found


def test_the_frechet_loss_compares_the_last_step_of_each_step_count_and_its_moments_are_resumed(parts, tiny_folder, tmp_path):
    teacher = parts[0]
    networks = full_networks(teacher.denoiser)
    sampler = StudentSampler(networks, Guidance(teacher.unconditional(), GuidanceConfig()), [4, 2, 1], last=True)
    assert sorted(sampler.numbers) == [(1, 0), (2, 1), (4, 3)]
    settings = {"method": "feature_matching", "feature_matching__loss": "frechet", "feature_matching__population": 8}
    settings |= {"trainer__checkpoint_every": 2, "trainer__log_every": 1, "steps": [2, 1]}

    def losses(name, steps, resume=False):
        distill(settings_of(tmp_path, tiny_folder, name, **settings, trainer__max_steps=steps), resume=resume)
        lines = [json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()]
        return {line["step"]: line["loss"] for line in lines if "loss" in line}

    whole = losses("whole", 4)
    assert all(loss > 0 for loss in whole.values())
    losses("parts", 2)
    assert losses("parts", 4, resume=True) == whole


def test_conditions_are_vectors():
    vectors = condition_vectors(Conditioning(class_labels=torch.tensor([0, 2, 2])), torch.zeros(3, 1), 4)
    assert vectors.tolist() == [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 1, 0]]
    assert condition_vectors(Conditioning(), torch.zeros(3, 1), 0).tolist() == [[0], [0], [0]]


@pytest.mark.parametrize("method", ["feature_matching", "distribution_matching"])
def test_a_student_is_trained_by_it_alone_and_in_addition(tiny_folder, tmp_path, method):
    changes = {"method": method, "feature_matching__weight": 0.5, "trainer__max_steps": 2, "trainer__log_every": 1}
    changes |= {"distribution_matching__fake_score__steps": 1, "feature_matching__loss": "drift"}
    result = distill(settings_of(tmp_path, tiny_folder, "run", **changes))
    assert result.exported.method == method
    lines = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    name = "loss" if method == "feature_matching" else "feature_matching"
    assert [line[name] > 0 for line in lines if name in line] == [True, True]


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"validation_extractor": "clip", "feature_matching.features": "clip"}, r"features clip: is the network of validation"),
        ({"dtype": "float16"}, r"feature_matching: .* overflows in dtype 'float16'"),
        (
            {"method": "latent_alignment"},
            r"feature_matching\.weight 1\.0: --method latent_alignment has no such additional loss; expects 0",
        ),
        ({"adversarial.weight": 1}, r"adversarial\.weight 1\.0: --method consistency has no such additional loss; expects 0"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_config(None, {"method": "consistency", "feature_matching.weight": 1, **settings})
