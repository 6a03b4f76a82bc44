"""What a training step takes, predicted before anything is loaded."""

import json

import pytest
from fresh_process import ran
from tiny_runs import settings_of

from gendistill.run.config import load_config
from gendistill.run.distill import distill
from gendistill.run.training_plan import AS_IT_IS, TrainingPlan, plan_training, step_needs
from gendistill.samplers.offload.memory_model import CUDA_CONTEXT, MetaNetworks


@pytest.fixture
def planned(tiny_folder):
    """planned(**settings): the needs of a step of consistency distillation from the tiny pipeline."""

    def plan(**changes):
        settings = {
            "teacher": str(tiny_folder),
            "data.path": "images",
            **{k.replace("__", "."): v for k, v in changes.items()},
        }
        return step_needs(load_config(None, settings))

    return plan


def test_rows_that_pass_the_networks_are_counted(planned):
    """A guided teacher and the target keep nothing; the student does."""
    rows = planned(trainer__batch_size=8, guidance__scale=3.0).rows
    assert (rows.plain, rows.learning) == (8 * 3, 8)
    rows = planned(trainer__batch_size=8, guidance__scale=1.0).rows
    assert (rows.plain, rows.learning) == (8 * 2, 8)
    both = planned(trainer__batch_size=8, guidance__scale=3.0, align__weight=1).rows
    assert (both.plain, both.learning) == (8 * 3, 8 * 2)
    matching = {"method": "distribution_matching", "steps": [1], "distribution_matching__fake_score__steps": 2}
    cycle = planned(trainer__batch_size=8, guidance__scale=3.0, **matching).rows  # the fake score alone, then both
    assert (cycle.plain, cycle.learning) == ((8 + 8 * 3) / 2, (8 + 8 * 2) / 2)
    accumulated = planned(trainer__batch_size=8, trainer__gradient_accumulation_steps=4)
    assert accumulated.passes == 4
    assert accumulated.rows.learning == 2


@pytest.mark.parametrize("method", ["consistency", "progressive", "latent_alignment", "distribution_matching", "adversarial"])
def test_every_method_is_planned_with_all_weights_and_as_a_lora(planned, method):
    settings = {"method": method, "distribution_matching__fake_score__steps": 1}
    whole, lora = planned(**settings), planned(**settings, lora__enabled=True, lora__rank=4)
    assert lora.trained < whole.trained
    assert lora.optimizer == 8 * lora.trained
    assert lora.weights < whole.weights
    assert lora.step > 0


def test_gradient_checkpoints_and_smaller_batches_take_less(planned):
    plain = planned(trainer__batch_size=8)
    assert planned(trainer__batch_size=8, trainer__gradient_checkpointing=True).step < plain.step
    assert planned(trainer__batch_size=2).step < planned(trainer__batch_size=8).step
    assert planned(trainer__batch_size=8, trainer__optimizer="adamw_8bit").optimizer == plain.optimizer / 4


def test_a_base_in_4_bits_and_released_text_encoders_take_less(planned):
    lora = {"lora__enabled": True, "lora__rank": 4, "trainer__gradient_checkpointing": True}
    plain, small = planned(**lora), planned(**lora, lora__quantization="nf4-weights")
    assert small.weights < plain.weights
    assert small.encoding < plain.encoding
    assert small.trained == plain.trained
    assert plain.peak == max(plain.encoding, plain.weights + plain.optimizer + plain.step)


PUBLISHED = {  # parameters in billions of the denoiser and of the text encoders
    "sd3-medium": (2.03, 5.58),
    "sd3.5-medium": (2.24, 5.58),
    "sd3.5-large": (8.06, 5.58),
    "flux-dev": (11.90, 4.89),
    "sana-1600m": (1.60, 2.61),
    "pixart-sigma": (0.61, 4.76),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_sizes_have_the_published_numbers_of_parameters(name):
    networks = MetaNetworks.from_configs(name)
    counts = [sum(of.numel() for part in parts for of in part.parameters()) for parts in ([networks.network], networks.text)]
    assert [count / 1e9 for count in counts] == pytest.approx(PUBLISHED[name], abs=0.006)
    assert networks.size == (1024, 1024)


@pytest.mark.slow
def test_a_step_of_a_lora_on_flux_in_4_bits_is_predicted_within_24_gib():
    settings = {
        "teacher": "flux-dev",
        "data.path": "images",
        "dtype": "bfloat16",
        "lora.enabled": True,
        "trainer.batch_size": 1,
    }
    settings |= {"trainer.gradient_checkpointing": True, "lora.quantization": "nf4-weights"}
    needs = step_needs(load_config(None, settings))
    assert needs.peak + CUDA_CONTEXT < 24 * 2**30


def test_what_is_predicted_learns_is_what_learns(planned, tiny_folder, tmp_path):
    result = distill(
        settings_of(tmp_path, tiny_folder, "run", steps=[4], trainer__max_steps=1, lora__enabled=True, lora__rank=4)
    )
    trained = sum(of.numel() for of in result.method.networks.trained.values())
    assert planned(lora__enabled=True, lora__rank=4).trained == trained


def test_the_settings_that_would_make_it_fit_are_told(tiny_folder):
    config = load_config(None, {"teacher": str(tiny_folder), "data.path": "images", "trainer.batch_size": 16})
    whole = plan_training(config)
    assert next(iter(whole.needs)) == AS_IT_IS
    assert whole.fitting() is None
    peaks = [of.peak + whole.context for of in whole.needs.values()]
    assert peaks[2] < peaks[1] < peaks[0]

    def told(peak):
        given = {name: of for name, of in vars(whole).items() if name != "memory"}
        plan = TrainingPlan(**given, memory=peak / 2**30)
        return plan.fitting(), list(plan.sentences())[-1]

    assert told(peaks[0])[0] == []
    assert told(peaks[0])[1].endswith("fits as it is")
    settings, sentence = told(peaks[2])
    assert settings == list(whole.needs)[1:3]
    assert sentence.endswith("fits with --set trainer.gradient_checkpointing=true --set trainer.gradient_accumulation_steps=16")
    assert told(1000)[0] is None


def test_a_student_in_8_bits_is_planned_and_told_nothing_that_it_does_not_take(tiny_folder):
    settings = {"teacher": str(tiny_folder), "data.path": "images", "quantization": "int8"}
    few = {"trainer.batch_size": 1, "trainer.gradient_checkpointing": True}  # what would save memory is requested already
    plan = plan_training(load_config(None, settings | few))
    assert list(plan.needs) == [AS_IT_IS, "dtype=float16"]


def test_a_plan_of_training_from_the_command_line(tiny_folder):
    command = ["plan", tiny_folder, "--train", "--set", "data.path=images", "--set", "trainer.batch_size=1"]
    done = ran(*command, "--set", "lora.enabled=true", "--probe", "--device", "cpu", "--json", "--memory", "8")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["seconds"] > 0
    assert found["measured_on"] == "cpu"
    assert found["fits"] == []
    assert found["needs"][AS_IT_IS]["peak"] > 0
    shown = ran(*command)
    assert "trainer.gradient_checkpointing=true" in shown.stdout
    with pytest.raises(ValueError, match="plan --train does not cover them"):
        plan_training(load_config(None, {"teacher": str(tiny_folder), "data.path": "images", "align.weight": 1,
                                         "align.distribution.adversarial": 0.1}))  # fmt: skip
    refused = ran(*command, "--method", "decoder")
    assert refused.returncode == 2
    assert "plan --train expects one of consistency, progressive, latent_alignment" in " ".join(refused.stderr.split())
