"""Several methods in one run: what each stage starts from, where it is written, how it resumes, and which settings it takes."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import logged, settings_of

from gendistill.diffusion.teacher import load_teacher
from gendistill.diffusion.trained_networks import lora_config, lora_networks, networks_from_adapter
from gendistill.methods.distribution_matching import FakeScore, FakeScoreConfig
from gendistill.run.config import load_config
from gendistill.run.distill import distill
from gendistill.run.dry_run import dry_run
from gendistill.run.training_plan import plan_training, step_needs

MATCHING = {"method": "distribution_matching", "distribution_matching": {"fake_score": {"steps": 1}}}
LIMITED = MATCHING | {"trainer": {"max_steps": 4}}
KINDS = {
    "all weights": {"stages": [{"method": "consistency"}, LIMITED]},
    "LoRA, two fake scores": {
        "stages": [MATCHING, LIMITED],
        "lora__enabled": True,
        "lora__rank": 2,
        "adversarial__weight": 0.1,  # of both stages
        "adversarial__features": "fake_score",
    },
}


def sequence(place, teacher, name="run", /, stages=KINDS["all weights"]["stages"], **changes):
    changes = {"trainer__validate_every": 2, "trainer__learning_rate": 1e-3, "data__num_synthetic": 2, **changes}
    return settings_of(place, teacher, name, method="sequence", sequence__stages=stages, **changes)


@pytest.fixture(scope="module", params=KINDS)
def trained(request, tiny_folder, tmp_path_factory):
    """A folder with a run, its settings by name, and its two stages."""
    place, changes = tmp_path_factory.mktemp("sequence"), KINDS[request.param]
    result = distill(sequence(place, tiny_folder, **changes))
    assert result.student_folder == place / "run" / "student"
    second = "distribution_matching" if "lora__enabled" not in changes else "distribution_matching_2"
    first = changes["stages"][0]["method"]
    return place, changes, place / "run" / "stages" / first, place / "run" / "stages" / second


def test_a_stage_starts_from_the_best_student_of_the_one_before(trained):
    _, _, first, second = trained
    best = min(first.glob("checkpoints/best-*"), key=lambda folder: json.loads((folder / "state.json").read_text())["score"])
    validated, figures = logged(second, "validation")[0], json.loads((best / "state.json").read_text())["figures"]
    assert validated == validated | figures  # which a consistency student has without those of the watches
    assert json.loads((first / "student" / "gendistill.json").read_text())["method"] == first.name
    assert json.loads((first.parent.parent / "student" / "gendistill.json").read_text())["method"] == "distribution_matching"


@pytest.mark.parametrize("killed_in", ["the first stage", "the second stage"])
def test_a_run_that_is_killed_in_a_stage_resumes_to_the_same_bits(killed_in, trained, tiny_folder):
    """A run that ends in its first stage begins the second one anew, with the initial weights of the run that did not end."""
    place, changes, first, second = trained
    name = killed_in.replace(" ", "-")
    shutil.copytree(place / "run", place / name)
    shutil.rmtree(place / name / "student")
    if killed_in == "the second stage":
        shutil.rmtree(place / name / "stages" / second.name / "checkpoints" / "step-00000004")
    else:
        shutil.rmtree(place / name / "stages" / second.name)
    if killed_in == "the first stage":
        shutil.rmtree(place / name / "stages" / first.name / "student")
        shutil.rmtree(place / name / "stages" / first.name / "checkpoints" / "step-00000004")
    distill(sequence(place, tiny_folder, name, **changes), resume=True)
    for stage in (first.name, second.name):
        ended = (place / run / "stages" / stage / "checkpoints" / "step-00000004" for run in ("run", name))
        before, after = (load_file(folder / "weights.safetensors") for folder in ended)
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)


def test_limits_of_a_stage_may_change_when_it_resumes_and_other_settings_may_not(trained, tiny_folder):
    place, changes, *_ = trained
    stages = [changes["stages"][0], MATCHING | {"trainer": {"max_steps": 5, "checkpoint_every": 1, "validate_every": 9}}]
    if "lora__enabled" in changes:
        stages[1]["trainer"]["learning_rate"] = 1.0
        with pytest.raises(ValueError, match=r"holds a run with other settings: sequence\.stages is"):
            distill(sequence(place, tiny_folder, **changes | {"stages": stages}), resume=True)
    else:
        shutil.copytree(place / "run", place / "longer")
        assert distill(sequence(place, tiny_folder, "longer", stages=stages), resume=True).training.steps == 5


@pytest.mark.parametrize(
    ("stages", "sentence"),
    [
        ([], "setting sequence.stages is .*; expects at least 1"),
        ([{}], "sequence.stages.0.method None: expects one of consistency, progressive, latent_alignment, distribution_match"),
        ([{"method": "sequence"}], "sequence.stages.0.method sequence: expects one of consistency"),
        ([{"method": "gan"}], "sequence.stages.0.method gan: expects one of consistency"),
        (
            [{"method": "consistency"}, {"method": "consistency", "trainer": {"max_step": 3}}],
            "setting sequence.stages.1.trainer.max_step is not known; did you mean trainer.max_steps",
        ),
        (
            [{"method": "consistency", "consistency": {"ema_decay": 2}}],
            "setting sequence.stages.0.consistency.ema_decay is 2; expects less than 1",
        ),
        ([{"method": "consistency", "lora": {"rank": 3}}], "sequence.stages.0.lora: is the same in all stages"),
        ([{"method": "consistency", "guidance": {"mode": "embedded"}}], "sequence.stages.0.guidance.mode: is the same in all"),
        ([{"method": "latent_alignment", "guidance": {"scale": 2.5}}], "sequence.stages.0.guidance: is the same in all"),
        (
            [{"method": "consistency", "trainer": {"num_validation": 9}}],
            "sequence.stages.0.trainer.num_validation: is the same",
        ),
        (
            [MATCHING, {"method": "latent_alignment", "adversarial": {"weight": 1}}],
            "sequence.stages.1.adversarial.weight 1.0: --method latent_alignment has no such additional loss; expects 0",
        ),
        (
            [MATCHING | {"distribution_matching": {"fake_score": {"steps": 9}}, "trainer": {"max_steps": 3}}],
            "sequence.stages.0.distribution_matching.fake_score.steps 9: the student is never updated",
        ),
    ],
)
def test_mistakes_name_the_setting_of_the_stage(stages, sentence):
    with pytest.raises(ValueError, match=f"^{sentence}"):
        load_config(None, {"method": "sequence", "sequence.stages": stages})


def test_students_are_handed_on_between_all_methods_with_a_second_network_or_features(tiny_folder, tmp_path):
    stages = [{"method": "adversarial"}, {"method": "feature_matching"}, MATCHING | {"feature_matching": {"weight": 0.1}}]
    changes = {"stages": stages, "trainer__max_steps": 2, "trainer__validate_every": 9, "trainer__num_validation": 2}
    assert distill(sequence(tmp_path, tiny_folder, **changes)).exported.method == "distribution_matching"
    terms = {
        "adversarial": "feature_discriminator_loss",
        "feature_matching": "loss",
        "distribution_matching": "feature_matching",
    }
    assert all(len(logged(tmp_path / "run" / "stages" / method, term)) == 2 for method, term in terms.items())
    with pytest.raises(ValueError, match=r"method feature_matching: plan --train expects one of consistency"):
        plan_training(sequence(tmp_path, tiny_folder, **changes))


def test_a_dry_run_names_stages_lengths_students_and_all_data(tiny_folder, tmp_path):
    stages = [
        {"method": "latent_alignment", "align": {"generations": 2}, "trainer": {"max_steps": 3}},
        {"method": "progressive", "progressive": {"start_steps": 4}, "steps": [2, 1], "trainer": {"max_minutes": 9}},
        MATCHING,
    ]
    plan = dry_run(sequence(tmp_path, tiny_folder, stages=stages))
    assert plan.steps.startswith("latent_alignment-generation-1: 3 of batch 2")
    assert "progressive-1: 4 of batch 2 (8 samples), at most 9 minutes; distribution_matching: 4 of" in plan.steps
    assert "trajectories of 16 steps that the teacher generates" in plan.data
    written = plan.writes.partition("the student in ")[2].split(", ")
    run = str(tmp_path / "run")
    assert written == [
        f"{run}/stages/latent_alignment-generation-1/student",
        f"{run}/stages/latent_alignment/student",
        f"{run}/stages/progressive/student-2",
        f"{run}/stages/progressive/student-1",
        f"{run}/student",
    ]


def test_a_fake_score_begins_as_the_teacher_in_every_stage_of_a_lora(tiny_folder):
    """Nothing of the fake score before it is left, neither its adapter nor its vectors for the student's steps."""
    opened = load_teacher(tiny_folder)
    teacher, conditioning = opened.denoiser, opened.encode_prompts(["food"])
    networks = lora_networks(teacher, lora_config(opened.family.lora_targets, 2))
    before = FakeScore(networks, FakeScoreConfig(), 2)
    x_t, t = torch.randn(1, *opened.codec.latent_shape(opened.size)), torch.tensor([500])
    expected = teacher(x_t, t, conditioning).x_0
    with torch.no_grad():
        for parameter in before.parameters.values():
            parameter.fill_(0.1)
    assert not torch.equal(before(x_t, t, conditioning, 0).x_0, expected)
    after = FakeScore(networks_from_adapter(networks.average, teacher), FakeScoreConfig(), 2)
    assert torch.equal(after(x_t, t, conditioning, 0).x_0, expected)


@pytest.mark.slow
def test_a_progressive_student_is_matched_in_its_prediction_type(tiny_folder, tmp_path):
    halved = {"method": "progressive", "progressive": {"start_steps": 4, "prediction_type_steps": 2}}
    result = distill(sequence(tmp_path, tiny_folder, stages=[halved, MATCHING], lora__enabled=True, lora__rank=2))
    assert result.exported.prediction_type == "v_prediction"
    assert (tmp_path / "run" / "stages" / "progressive" / "student-2").is_dir()


def test_the_plan_is_that_of_the_stage_with_the_highest_peak(tiny_folder, tmp_path):
    recomputed = {"lora__enabled": True, "lora__rank": 2, "trainer__gradient_checkpointing": True}
    assert step_needs(sequence(tmp_path, tiny_folder, stages=[{"method": "adversarial"}], **recomputed)).step > 0
    both = step_needs(sequence(tmp_path, tiny_folder))
    alone = step_needs(sequence(tmp_path, tiny_folder, stages=[MATCHING]))
    assert (
        both.trained == alone.trained > step_needs(sequence(tmp_path, tiny_folder, stages=[{"method": "consistency"}])).trained
    )
