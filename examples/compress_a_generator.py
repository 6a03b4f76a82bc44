# %% [markdown]
# # Compress a generator
#
# A class-conditional GAN that comes with gendistill loses three quarters of its parameters and multiply-accumulates: about two
# minutes on two CPU cores. Run this file with `python`, or open it as a notebook
# (`jupytext --to notebook compress_a_generator.py`).

# %%
from pathlib import Path

from gendistill import distill, evaluate
from gendistill.sampling.generate import generate

STEPS, PAIRS, EVALUATED = 150, 2048, 200  # optimizer steps; images of the teacher to learn from; images to evaluate on
OUT = Path("runs/examples/compress-a-generator")
OUT.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## Distil
#
# The student starts as the most important channels of its teacher. It learns the teacher's images of the same noise; late in
# the run it is also compared with the teacher's images patch by patch, which keeps its images sharp. A generator of your own
# is `teacher="my_module:Generator"` with `generator={"weights": "g.safetensors"}`.

# %%
result = distill(
    method="gan",
    teacher="assets/tiny-gan",
    compress={"factor": 4},
    gan={
        "pairs": PAIRS,
        "adversarial": 0,
        "output": {"l1": 1, "perceptual": 0},
        "features": {"hints": 0},
        "distribution": {"patches": {0: 0, 0.75: 0, 0.8: 6}, "real_patches": 0},
    },
    trainer={"max_steps": STEPS, "batch_size": 32, "learning_rate": 1.5e-3, "num_validation": 100, "trackers": []},
    out=str(OUT / "run"),
    resume=True,
)
result

# %% [markdown]
# ## Teacher and student, from the same noise

# %%
classes = ["google emoji of food and drink", "twitter emoji of animals and nature", "google emoji of smileys and emotion"]
generate("assets/tiny-gan", classes, OUT / "teacher.png", num=6)

# %%
generate(str(result.student_folder), classes, OUT / "student.png", num=6)

# %% [markdown]
# ## Evaluate
#
# The Fréchet distance of both to real images, and the time of both, measured alternately.

# %%
evaluate(
    str(result.student_folder),
    reference="assets/emoji/train-*.tar.gz",
    caption="category",
    num=EVALUATED,
    out=OUT / "evaluation",
)
