"""Every method, full or as a LoRA, in every precision, with split batches and recomputed activations: the same gradients."""

import pytest
from training_matrix import Matrix, all_cases, differences, pairwise_cases, require_all_gradients

# The largest relative differences from float32 of losses, and of the gradient of a network as one vector.
TOLERANCES = {"float32": (1e-4, 1e-3), "fp16": (0.01, 0.12), "bf16": (0.05, 0.2)}
CHOSEN = pairwise_cases()


def tolerances(case):
    kind = next((kind for kind in ("bf", "fp16", "float16") if kind in case.precision), "float32")
    loss, gradient = TOLERANCES[{"bf": "bf16", "float16": "fp16"}.get(kind, kind)]
    if case.method in ("compression", "gan"):  # feature maps are divided by their scale in each micro-batch
        gradient = max(gradient, 0.01 * case.accumulation)
    return loss, gradient


@pytest.fixture(scope="module")
def matrix(tiny_folder, tmp_path_factory):
    return Matrix(tiny_folder, tmp_path_factory.mktemp("matrix"))


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=[] if case in CHOSEN else pytest.mark.slow, id=str(case)) for case in all_cases()]
)
def test_gradients_are_those_of_float32_and_of_the_unsplit_batch(matrix, case):
    steps = matrix.steps(case)
    require_all_gradients(steps)
    loss, gradient = tolerances(case)
    for name, difference in differences(steps, matrix.reference(case)).items():
        assert difference < (gradient if "gradient" in name else loss), name
