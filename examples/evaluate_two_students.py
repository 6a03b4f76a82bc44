# %% [markdown]
# # Evaluate two students
#
# Which of two students is better, and is the difference real? Two methods get the same number of training steps, and
# `compare` puts the students next to their teacher: about two minutes on two CPU cores. Run this file with `python`, or open
# it as a notebook (`jupytext --to notebook evaluate_two_students.py`).

# %%
from pathlib import Path

from gendistill import distill
from gendistill.evaluation.compare import compare
from gendistill.evaluation.evaluation_config import ComparisonConfig

STEPS, IMAGES, EVALUATED = 60, 128, 64  # optimizer steps; images to train on; images that each model is evaluated on
OUT = Path("runs/examples/evaluate-two-students")
OUT.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## Two students
#
# One learns by consistency, one by latent alignment, which computes trajectories of the teacher first.

# %%
prompts = [
    "google emoji of food fruit",
    "twitter emoji of animal mammal",
    "google emoji of face smiling",
    "twitter emoji of heart",
]
(OUT / "prompts.txt").write_text("\n".join(prompts))
students = {}
for method in ("consistency", "latent_alignment"):
    students[method] = distill(
        teacher="assets/tiny-sd",
        method=method,
        steps=[4],
        solvers=["ddim"],
        data={"prompts": str(OUT / "prompts.txt"), "num_synthetic": IMAGES},
        align={"trajectories": IMAGES},
        trainer={"max_steps": STEPS, "batch_size": 16, "learning_rate": 4e-4, "num_validation": 32, "trackers": []},
        out=str(OUT / method),
        resume=True,
    )
students["consistency"]

# %%
students["latent_alignment"]

# %% [markdown]
# ## Compare
#
# The first model is the one that the others are compared with. All generate images for the same prompts and seeds, so their
# scores can be tested in pairs. So few images are enough for a first impression only: the intervals show how much is uncertain.

# %%
comparison = compare(
    ["assets/tiny-sd", *(str(result.student_folder) for result in students.values())],
    ComparisonConfig(
        "assets/emoji/train-*.tar.gz",
        prompts=str(OUT / "prompts.txt"),
        num=EVALUATED,
        steps=[4],
        guidance_scale=3.0,
        solver="dpm-solver++",
        quick=True,
        out=OUT / "comparison",
    ),
)
comparison

# %% [markdown]
# ## Is the difference real?

# %%
for test in comparison.tests:
    print(f"{test.a} against {test.b}, {test.score}: p = {test.test.p_value:.3f}")
