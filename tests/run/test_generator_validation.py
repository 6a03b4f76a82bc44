import copy

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_gans import tiny_gan, tiny_method, tiny_pictures, tiny_student, tiny_translator

from gendistill.data.gan_batches import NoData
from gendistill.data.gan_pairs import pair_images
from gendistill.metrics.distances.frechet import frechet_distance
from gendistill.metrics.features.feature_extractor import extract, load_extractor
from gendistill.metrics.features.gaussian import gaussian_statistics
from gendistill.run.gan_validation import GeneratorValidator, diversity, in_colour


@pytest.fixture(scope="module")
def extractor():
    return load_extractor("emoji")


@pytest.fixture
def validator(extractor, tmp_path):
    """validator(method, data): of 12 images, whose grids are in tmp_path."""

    def make(method, data=None, num=12):
        return GeneratorValidator(method, data or NoData(), extractor, tmp_path, num=num, seed=0, device="cpu")

    return make


def its_own_student(gan):
    """A method whose student is still its teacher."""
    start = tiny_student(gan)
    start = type(start)(**{**vars(start), "network": copy.deepcopy(gan.generator.network)})
    return tiny_method(gan, start=start)


def test_diversity_is_the_mean_distance_between_two_of_a_class():
    points = torch.tensor([[0.0, 0.0], [3.0, 4.0], [0.0, 8.0], [0.0, 0.0]])
    assert diversity(points, None) == pytest.approx((5 + 8 + 0 + 5 + 5 + 8) / 6)
    assert diversity(points, torch.tensor([0, 0, 1, 1])) == pytest.approx((5 + 8) / 2)
    assert diversity(points, torch.tensor([0, 1, 1, 2])) == pytest.approx(5)


def test_where_no_class_has_two_images_diversity_is_that_of_all():
    points = torch.randn(4, 3, generator=torch.Generator().manual_seed(0))
    assert diversity(points, torch.arange(4)) == diversity(points, None) > 0


def test_images_are_shown_in_colour():
    grey = torch.tensor([-1.0, 0.0, 1.0, 3.0]).view(1, 1, 2, 2)
    assert in_colour(grey)[0, :, :, :].flatten(1).unique(dim=0).tolist() == [[0, 128, 255, 255]]
    assert in_colour(torch.zeros(2, 4, 3, 5)).shape == (2, 3, 3, 5)


def test_a_student_that_is_its_teacher_is_as_diverse(validator):
    evaluator = validator(its_own_student(tiny_gan()))
    assert evaluator(0).figures["diversity"] == pytest.approx(1, rel=2e-5)  # a value at half a level is rounded either way


def test_the_score_is_the_distance_of_the_averages_images_from_the_real_ones(validator, extractor, tmp_path):
    data = tiny_pictures(tmp_path / "cache")
    method = tiny_method(data=data)
    evaluator = validator(method, data)
    validation = evaluator(0)
    with torch.no_grad():
        images = in_colour(method.networks.average(evaluator.inputs, evaluator.labels))
    real = data.cache.rows(torch.arange(20))["images"]
    expected = frechet_distance(*(gaussian_statistics(extract(extractor, of)) for of in (images, real)))
    assert validation.score == validation.figures["fd-emoji"] == pytest.approx(expected, rel=1e-4)
    assert evaluator(2) == validation


def test_classes_are_as_frequent_as_in_the_data_and_all_alike_without(validator, tmp_path):
    data = tiny_pictures(tmp_path / "cache")
    assert validator(tiny_method(data=data), data, num=20).labels.bincount().tolist() == [12, 4, 4]
    assert validator(tiny_method(), num=12).labels.bincount().tolist() == [4, 4, 4]


def test_the_method_hears_of_diversity_after_the_start_only(validator):
    method = tiny_method()
    evaluator = validator(method)
    evaluator(0)
    assert method.state_dict()["diversity"] is None
    relative = evaluator(2).figures["diversity"]
    assert method.state_dict()["diversity"] == method.state_dict()["max_diversity"] == relative


def test_a_teacher_that_always_generates_the_same_is_no_reason_to_fail(validator):
    gan = tiny_gan()
    for tensor in gan.generator.network.state_dict().values():
        tensor.zero_()
    assert np.isfinite(validator(tiny_method(gan))(2).figures["diversity"])


def test_networks_are_left_in_their_mode_and_with_their_statistics(validator, tmp_path):
    data = tiny_pictures(tmp_path / "cache")
    gan = tiny_gan()
    method = tiny_method(gan, data, peer="teacher")
    before = {name: tensor.clone() for name, tensor in gan.generator.network.state_dict().items()}
    validator(method, data)(2)
    assert all(module.training for module in gan.generator.network.modules())
    assert not any(module.training for module in method.networks.average.network.modules())
    for name, tensor in gan.generator.network.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_grids_of_the_teacher_and_of_each_validation_are_kept(validator, tmp_path):
    gan = tiny_translator()
    data = tiny_pictures(tmp_path / "cache", gan.generator.spec)
    evaluator = validator(tiny_method(gan, data), data)
    evaluator(0)
    evaluator(150)
    assert sorted(file.name for file in tmp_path.glob("*.png")) == ["step-000000.png", "step-000150.png", "teacher.png"]
    assert Image.open(tmp_path / "teacher.png").size == (8 * 18 + 2, 2 * 18 + 2)


def test_a_student_from_images_is_validated_by_its_error_to_the_teachers_images_of_the_same_inputs(validator, tmp_path):
    gan = tiny_translator()
    images = tiny_pictures(tmp_path / "rows", gan.generator.spec)
    paired = pair_images(gan.generator, images, str(tmp_path / "cache"))
    assert validator(its_own_student(gan), paired)(0).figures["l1_to_teacher"] == 0
    method, called = tiny_method(gan, images), []
    gan.generator.network.register_forward_hook(lambda *_: called.append(1))
    validate = validator(method, paired)
    assert called == []  # the teacher's images are cached
    result = validate(1)
    assert 0.01 < result.figures["l1_to_teacher"] < 1
