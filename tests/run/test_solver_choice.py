"""The solver of a student is chosen after training, on more images than a checkpoint, from the same noise for each solver."""

import pytest
from tiny_runs import logged, settings_of

from gendistill.run.distill import distill
from gendistill.run.validation import solver_table
from gendistill.training.state import Validation

TWO_SOLVERS = {"solvers": ["ddim", "tcd"], "steps": [2, 1], "trainer__max_steps": 2, "validation_extractor": "pixels"}


def test_the_best_solver_of_four_times_as_many_images_is_the_students_and_every_record_names_the_network(
    tiny_folder, tmp_path, capfd
):
    result = distill(settings_of(tmp_path, tiny_folder, "run", **TWO_SOLVERS))
    [chosen] = logged(tmp_path / "run", "solvers")
    assert [each["images"] for each in logged(tmp_path / "run", "validation")] == [4, 4]
    assert chosen["images"] == 16
    distances = chosen["fd-pixels"]
    assert distances["ddim"]["1"] == distances["tcd"]["1"]  # one step is the same with every solver
    assert distances["ddim"]["2"] != distances["tcd"]["2"]
    best = min(distances, key=lambda solver: distances[solver]["2"])
    spec = result.exported
    assert best == chosen["solver"] == spec.solver
    assert spec.figures["validation"] == pytest.approx(sum(distances[best].values()) / 2)
    assert spec.validation_network == chosen["network"] == "pixels (0000000000000000)"
    assert "| validated by | pixels (0000000000000000) |" in (result.student_folder / "README.md").read_text()
    errors = capfd.readouterr().err
    assert "feature network: pixels, as validation_extractor names it\n" in errors
    assert solver_table(Validation(0.0, chosen)) in errors
    assert "fd-pixels of 16 images" in errors


def test_a_run_may_keep_the_solver_of_its_validation(tiny_folder, tmp_path):
    result = distill(settings_of(tmp_path, tiny_folder, "run", **TWO_SOLVERS, trainer__num_solver_images=0))
    [chosen] = logged(tmp_path / "run", "solvers")
    assert chosen["images"] == 4
    assert chosen in logged(tmp_path / "run", "validation")
    assert result.exported.solver == chosen["solver"]
