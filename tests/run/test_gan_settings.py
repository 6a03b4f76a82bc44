import pytest

from gendistill.run.config import config_text, load_config
from gendistill.settings.schedule import Step, weight_at


def gan(**overrides):
    return load_config(None, {"method": "gan", **{f"gan.{name.replace('__', '.')}": of for name, of in overrides.items()}}).gan


def test_one_setting_leaves_its_neighbours_as_they_are():
    usual = gan()
    for name in ("output.l2", "features.gram", "relations.angle", "discriminator.r1"):
        section, _, setting = name.partition(".")
        changed = gan(**{name: 0.5})
        assert getattr(changed, section).model_dump() == {**getattr(usual, section).model_dump(), setting: 0.5}


@pytest.mark.parametrize(
    ("weight", "by_step"),
    [
        (0.5, {0: 0.5, 1000: 0.5}),
        ({0: 1, 500: 0.1}, {0: 1, 250: 0.55, 500: 0.1, 9999: 0.1}),
        ({100: 0, 200: 2, 600: 1}, {0: 0, 100: 0, 150: 1, 200: 2, 400: 1.5, 600: 1, 601: 1}),
        ({7: 3}, {0: 3, 7: 3, 8: 3}),
    ],
)
def test_a_schedule_is_straight_lines_between_its_steps_and_level_outside(weight, by_step):
    read = gan(adversarial=weight).adversarial
    assert {step: weight_at(read, step) for step in by_step} == pytest.approx(by_step)


@pytest.mark.parametrize(
    ("weight", "by_fraction"),
    [
        ({0.5: 1, 1.0: 0}, {0.0: 1, 0.5: 1, 0.75: 0.5, 1.0: 0}),
        ({0: 0, 1: 1}, {0.0: 0, 0.25: 0.25, 1.0: 1}),
        ({"0": 0, "0.5": 6}, {0.0: 0, 0.25: 3, 0.9: 6}),
    ],
)
def test_a_schedule_whose_keys_are_all_up_to_1_is_by_fraction_of_the_run(weight, by_fraction):
    read = gan(adversarial=weight).adversarial
    assert {fraction: weight_at(read, Step(700, fraction)) for fraction in by_fraction} == pytest.approx(by_fraction)
    with pytest.raises(ValueError, match="steps and fractions do not mix"):
        gan(adversarial={0.5: 1, 800: 0})


def test_a_schedule_is_the_same_after_it_was_written(tmp_path):
    config = load_config(None, {"method": "gan", "gan.output.l1": {0: 1, 500: 0.25}, "gan.discriminator.temperature": {"0": 4}})
    (tmp_path / "config.yaml").write_text(config_text(config))
    assert load_config(tmp_path / "config.yaml") == config
    assert config.gan.output.l1 == {0: 1.0, 500: 0.25}


@pytest.mark.parametrize("weight", [-1, "much", float("nan"), float("inf"), {}, {0: -1}, {-5: 1}, {"soon": 1}, {0: "much"}])
def test_a_weight_that_is_none_is_refused_with_what_it_takes(weight):
    with pytest.raises(ValueError, match=r"adversarial.*a number of at least 0, or numbers by step such as"):
        gan(adversarial=weight)


@pytest.mark.parametrize("temperature", [0, {0: 4, 10: 0}])
def test_a_temperature_is_above_0_at_every_step(temperature):
    with pytest.raises(ValueError, match=r"temperature.*a number above 0, or numbers by step"):
        gan(discriminator__temperature=temperature)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"factor": 0.5}, "compress 0.5: expects a factor above 1, such as 4"),
        ({"factor": 1}, "compress 1: expects a factor above 1, such as 4"),
        ({"factor": float("nan")}, "compress"),
        ({"factor": 4, "params": 10}, "compress.factor: cannot be combined with compress.params or compress.macs"),
        ({"factor": 4, "student": "a:B"}, "compress.student a:B: cannot be combined with a compress factor"),
    ],
)
def test_a_size_that_is_none_is_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence.replace(".", r"\.")):
        load_config(None, {"method": "gan", **{f"compress.{name}": of for name, of in settings.items()}})
