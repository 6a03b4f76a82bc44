"""A wrong setting is named, with what it takes and the nearest valid one: in YAML, by name and in Python."""

import pytest
import yaml

from gendistill.methods import outline_of
from gendistill.methods.progressive import network_calls
from gendistill.run.config import DistillConfig, load_config, save_config
from gendistill.settings.section import setting_names
from gendistill.training.trainer_config import TrainerConfig

WRONG = [
    (
        {"method": "consistancy"},
        "setting method is 'consistancy'; expects consistency, progressive, latent_alignment, distribution_matching, "
        "adversarial, feature_matching, fine_tuning, sequence, compression, decoder or gan; did you mean consistency?",
    ),
    ({"trainer.optimizer": "adamv"}, "setting trainer.optimizer is 'adamv'; expects adamw or adamw_8bit; did you mean adamw?"),
    ({"solvers": ["ddim", "lmc"]}, "setting solvers is 'lmc'; expects ddim, lcm or tcd; did you mean lcm?"),
    ({"trainer.trackers": ["wandbb"]}, "did you mean wandb?"),
    (
        {"trainer.trackers": ["aim"]},
        "setting trainer.trackers is ['aim']; expects trackers that are installed (pip install aim)",
    ),
    ({"trainer.max_step": 5}, "setting trainer.max_step is not known; did you mean trainer.max_steps?"),
    ({"max_steps": 5}, "setting max_steps is not known; did you mean trainer.max_steps?"),
    ({"trianer.max_steps": 5}, "setting trianer is not known; did you mean trainer?"),
    ({"xyzzy": 5}, "setting xyzzy is not known"),
    ({"trainer.max_steps": "many"}, "setting trainer.max_steps is 'many'; expects a whole number"),
    ({"trainer.max_steps": 1.5}, "setting trainer.max_steps is 1.5; expects a whole number"),
    ({"trainer.max_steps": 0}, "setting trainer.max_steps is 0; expects at least 1"),
    ({"trainer.learning_rate": 0}, "setting trainer.learning_rate is 0; expects more than 0"),
    ({"consistency.ema_decay": 1}, "setting consistency.ema_decay is 1; expects less than 1"),
    ({"guidance.prompt_dropout": 2}, "setting guidance.prompt_dropout is 2; expects at most 1"),
    ({"guidance.range": [1]}, "expects two numbers such as [1, 6]"),
    ({"lora.enabled": "maybe"}, "setting lora.enabled is 'maybe'; expects true or false"),
    ({"lora": True}, "setting lora is True; expects settings by name"),
    ({"data.caption": 5}, "setting data.caption is 5; expects a text or numbers by name such as {name: 0.3, subcategory: 0.7}"),
    (
        {"progressive.stages": 5},
        "setting progressive.stages is 5; expects settings by name such as {guidance_distillation: {",
    ),
    ({"progressive.grid": 5}, "setting progressive.grid is 5; expects a list of whole numbers such as [999, 774, 574, 274]"),
    ({"steps": 4}, "setting steps is 4; expects a list of whole numbers such as [4, 2, 1]"),
    ({"device": 5}, "setting device is 5; expects a text"),
]


HALVED = {"method": "progressive", "steps": [8, 4, 2, 1]}
WRONG_HALVINGS = [
    (
        {"progressive.stages": {"3": {}}},
        "progressive.stages.3 is not known; expects one of guidance_distillation, 32, 16, 8, 4, 2, 1",
    ),
    (
        {"progressive.stages": {4: {"max_step": 9}}},
        "progressive.stages.4: setting max_step is not known; did you mean",
    ),
    ({"progressive.stages": {4: {"patience": 0}}}, "progressive.stages.4: setting patience is 0; expects at least 1"),
    (
        {"progressive.start_steps": 48},
        "steps [8, 4, 2, 1]: expects values from [24, 12, 6, 3, 2, 1], the step counts",
    ),
    ({"progressive.start_steps": 8, "steps": [8]}, "8 student steps: expects 1 to 7, less than the teacher's"),
    ({"progressive.sampler": "stochastic"}, "steps [8, 4, 2, 1]: expects even numbers for the stochastic sampler"),
    ({"progressive.grid": [999, 499, 499, 0]}, "progressive.grid [999, 499, 499, 0]: expects descending timesteps, such as"),
    (
        {"progressive.grid": [999, 499, 0]},
        "progressive.grid of 3 timesteps: expects the step count of one of the students",
    ),
]


@pytest.mark.parametrize(("settings", "sentence"), WRONG_HALVINGS, ids=[str(settings) for settings, _ in WRONG_HALVINGS])
def test_stages_that_cannot_be_are_named_with_those_that_can(settings, sentence):
    with pytest.raises(ValueError, match=r"^\S") as error:
        load_config(None, HALVED | settings)
    assert sentence in str(error.value)


def test_a_stage_is_trained_by_the_settings_of_all_and_its_own_over_them(tmp_path):
    (tmp_path / "config.yaml").write_text("progressive: {stages: {imitation: {max_steps: 7}, 4: {patience: 2}}}")
    config = load_config(tmp_path / "config.yaml", HALVED | {"trainer.max_steps": 5, "progressive.stages.4.batch_size": 64})
    trainers = {stage.name: stage.trainer for stage in outline_of(config)}
    assert [trainers[stage].max_steps for stage in ("guidance_distillation", "8", "4")] == [7, 5, 5]
    assert [trainers[stage].patience for stage in ("guidance_distillation", "4")] == [None, 2]
    assert trainers["4"].batch_size == 64
    save_config(config, tmp_path / "again.yaml")
    assert load_config(tmp_path / "again.yaml") == config


def test_the_stochastic_sampler_makes_two_calls_of_a_students_step():
    config = load_config(None, HALVED | {"steps": [4, 8], "progressive.sampler": "stochastic"})
    assert network_calls(config) == [64, 32, 16, 8, 4]


def nested(settings):
    """{"a.b": 1} as {"a": {"b": 1}}."""
    made = {}
    for name, value in settings.items():
        *sections, last = name.split(".")
        inside = made
        for section in sections:
            inside = inside.setdefault(section, {})
        inside[last] = value
    return made


@pytest.mark.parametrize(("settings", "sentence"), WRONG, ids=[str(settings) for settings, _ in WRONG])
@pytest.mark.parametrize("way", ["by name", "in YAML", "in Python"])
def test_a_wrong_setting_is_named_with_what_it_takes(tmp_path, settings, sentence, way):
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(nested(settings)))
    load = {
        "by name": lambda: load_config(None, settings),
        "in YAML": lambda: load_config(tmp_path / "config.yaml"),
        "in Python": lambda: DistillConfig(**nested(settings)),
    }
    with pytest.raises(ValueError, match=r"^\S") as error:
        load[way]()
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


def test_a_section_of_its_own_and_a_setting_that_is_changed_are_checked_too():
    with pytest.raises(ValueError, match=r"^setting max_step is not known; did you mean max_steps\?$"):
        TrainerConfig(max_step=3)
    config = DistillConfig()
    with pytest.raises(ValueError, match=r"^setting max_step is not known; did you mean max_steps\?$"):
        config.trainer.max_step = 3
    with pytest.raises(ValueError, match=r"^setting seed is -1; expects at least 0$"):
        config.seed = -1
    config.trainer.max_steps = 7
    assert config.trainer.max_steps == 7


def test_no_is_a_precision_although_yaml_reads_it_as_false(tmp_path):
    (tmp_path / "config.yaml").write_text("trainer: {mixed_precision: no}")
    assert load_config(tmp_path / "config.yaml").trainer.mixed_precision == "no"


def test_a_config_that_is_written_holds_every_setting_and_is_read_as_the_same(tmp_path):
    config = load_config(None, {"trainer.max_steps": 7, "data.caption": {"name": 0.5, "group": 0.5}})
    save_config(config, tmp_path / "config.yaml")
    assert load_config(tmp_path / "config.yaml") == config
    written = yaml.safe_load((tmp_path / "config.yaml").read_text())
    for name in setting_names(DistillConfig):
        inside = written
        for part in name.split("."):
            inside = inside[part]
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]
