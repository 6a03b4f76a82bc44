"""`gendistill.distill(...)` as a function: what a seed and a settings file promise."""

from functools import partial

import pytest
import torch
from tiny_runs import settings_of

from gendistill.diffusion.trained_networks import adapter_parameters
from gendistill.run.config import load_config
from gendistill.run.distill import distill
from gendistill.samplers import FewStepSampler


@pytest.fixture
def settings(tiny_folder, tmp_path):
    """settings(name, **changes) of a data-free run in tmp_path/name."""
    return partial(settings_of, tmp_path, tiny_folder)


def students(*results):
    return [{name: p.detach().clone() for name, p in result.networks.trained.items()} for result in results]


@pytest.mark.parametrize("lora", [False, True])
def test_a_seed_decides_the_student_whether_or_not_the_run_was_stopped(settings, lora):
    at_once = distill(settings("one", lora__enabled=lora))
    torch.manual_seed(99)  # whatever the process did before
    distill(settings("other", lora__enabled=lora, trainer__max_steps=2))
    torch.manual_seed(100)
    resumed = distill(settings("other", lora__enabled=lora), resume=True)
    one, other = students(at_once, resumed)
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def test_a_run_goes_on_only_as_the_kind_of_student_that_it_began(settings):
    distill(settings("run", trainer__max_steps=2))
    for change, value in {"lora__enabled": True, "guidance__mode": "embedded"}.items():
        with pytest.raises(ValueError, match=f"{change.replace('__', '.')} is .*; expects the settings of its config"):
            distill(settings("run", **{change: value}), resume=True)


def test_a_config_written_by_a_run_starts_the_same_run(settings, tmp_path):
    config = settings("run", trainer__max_steps=1)
    distill(config)
    assert load_config(tmp_path / "run" / "config.yaml") == config


def test_diffusers_loads_every_layer_of_an_exported_lora(settings):
    result = distill(settings("lora", lora__enabled=True))
    unet = FewStepSampler.from_pretrained(result.student_folder).pipeline.unet
    (adapter,) = unet.peft_config
    loaded = dict(adapter_parameters(unet, adapter))
    assert loaded.keys() == result.networks.averaged.keys()
    assert all(torch.equal(p, result.networks.averaged[name].half().float()) for name, p in loaded.items())


def test_a_secret_of_the_environment_is_written_nowhere(settings, tmp_path, monkeypatch, capfd):
    secret = "hf_kept_to_itself"
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, secret)
    distill(settings("run", trainer__max_steps=1, trainer__trackers=["tensorboard"]))
    shown = capfd.readouterr()
    assert secret not in shown.out + shown.err
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert any("tfevents" in path.name for path in files)
    assert not [path for path in files if secret.encode() in path.read_bytes()]
