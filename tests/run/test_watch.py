"""The watches of a training: what they measure, and that a run which drifts ends with its best checkpoint and a sentence."""

import json

import pytest
import torch
from tiny_runs import logged, settings_of

from gendistill.metrics.colour import mean_chroma, mean_colour, oklab
from gendistill.run.distill import distill
from gendistill.run.watch import reason_to_end
from gendistill.training.state import TrainState, Validation

MATCHING = {"method": "distribution_matching", "distribution_matching__fake_score__steps": 1, "trainer__validate_every": 2}
SMALL = {"watch__prompts": 2, "watch__seeds": 2, "data__num_synthetic": 2, **MATCHING}
NEAR = {"colour_distance": 0.01, "saturation_ratio": 1.1, "diversity_ratio": 0.9}


def test_oklab_has_the_published_values():
    """The pairs of D65 white, and of the primary colours, from the definition's page and from CSS Color 4."""
    colours = torch.tensor([[1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]], dtype=torch.float32)[:, :, None, None]
    expected = [[1, 0, 0], [0.62796, 0.22486, 0.12585], [0.86644, -0.23389, 0.17950], [0.45201, -0.03246, -0.31153]]
    torch.testing.assert_close(oklab(colours)[:, :, 0, 0], torch.tensor(expected), atol=2e-4, rtol=0)


def test_a_grey_image_has_no_saturation_and_half_of_the_pixels_count_half():
    grey = torch.full((1, 1, 4, 4), 128, dtype=torch.uint8)
    assert mean_chroma(grey) == pytest.approx(0, abs=1e-3)
    red = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    red[:, 0] = 255
    both = torch.cat([red, grey.expand(-1, 3, -1, -1)])
    assert mean_chroma(both) == pytest.approx(mean_chroma(red) / 2, rel=1e-2)
    torch.testing.assert_close(mean_colour(both), (mean_colour(red) + mean_colour(grey)) / 2)


@pytest.mark.parametrize(
    ("figure", "value", "setting"),
    [
        ("colour_distance", 0.3, "watch.colour"),
        ("saturation_ratio", 2.5, "watch.saturation"),
        ("saturation_ratio", 0.3, "watch.saturation"),
        ("diversity_ratio", 0.4, "watch.diversity"),
    ],
)
def test_a_figure_beyond_its_bound_ends_the_training_unless_it_began_there_or_the_bound_is_null(
    figure, value, setting, tiny_folder, tmp_path
):
    watch = settings_of(tmp_path, tiny_folder, "run").watch
    assert reason_to_end(watch, NEAR, NEAR) is None
    assert setting in reason_to_end(watch, NEAR | {figure: value}, NEAR)
    assert reason_to_end(watch, NEAR | {figure: value}, NEAR | {figure: value}) is None
    unbounded = watch.model_copy(update={setting.partition(".")[2]: None})
    assert reason_to_end(unbounded, NEAR | {figure: value}, NEAR) is None


def test_a_checkpoint_that_has_drifted_is_never_the_best():
    state = TrainState()
    assert state.add(Validation(2.0, {}))
    state.step = 10
    assert not state.add(Validation(1.0, {}, "the colours drift"))
    assert state.best == Validation(2.0, {})


def test_a_run_that_drifts_ends_at_its_best_with_a_sentence_and_resumes_from_its_own_start(tiny_folder, tmp_path):
    """The learning rate of a collapse."""
    changes = {**SMALL, "trainer__learning_rate": 1.0, "trainer__max_steps": 8, "watch__colour": 0.001}
    result = distill(settings_of(tmp_path, tiny_folder, "run", **changes))
    assert "watch.colour 0.001" in result.training.ended
    assert result.training.steps == 2
    assert result.training.best_step == 0
    assert result.training.ended in (result.student_folder / "README.md").read_text()
    known = json.loads((tmp_path / "run" / "samples" / "watch.json").read_text())
    assert known.keys() == {"teacher", "start"}
    first, last = logged(tmp_path / "run", "validation")
    assert last["colour_distance"] > first["colour_distance"]
    assert distill(settings_of(tmp_path, tiny_folder, "run", **changes), resume=True).training == result.training


@pytest.mark.parametrize("changes", [{"lora__enabled": True, "lora__rank": 2}, {"guidance__mode": "embedded"}])
def test_the_figures_of_an_untrained_student_in_the_teachers_steps_are_those_of_the_teacher(changes, tiny_folder, tmp_path):
    changes = {**SMALL, "steps": [20], "guidance__scale": 1.0, "trainer__max_steps": 1, **changes}
    distill(settings_of(tmp_path, tiny_folder, "run", **changes))
    first = logged(tmp_path / "run", "validation")[0]
    assert first["colour_distance"] < 0.02
    assert first["saturation_ratio"] == pytest.approx(1, rel=0.1)
    assert first["diversity_ratio"] == pytest.approx(1, rel=0.1)
