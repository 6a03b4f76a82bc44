# %% [markdown]
# # Distil and sample
#
# A small Stable Diffusion pipeline that comes with gendistill is distilled into a 4-step student: about two minutes on two CPU
# cores. Run this file with `python`, or open it as a notebook (`jupytext --to notebook distill_and_sample.py`).

# %%
from pathlib import Path

from gendistill import FewStepSampler, distill
from gendistill.sampling.generate import generate

STEPS, IMAGES = 120, 128  # of training: optimizer steps, and images that the teacher makes to train on
OUT = Path("runs/examples/distill-and-sample")
OUT.mkdir(parents=True, exist_ok=True)

# %% [markdown]
# ## The teacher
#
# It needs 50 steps for an image, and each step calls its network twice: once with the prompt and once without.

# %%
prompts = ["google emoji of food fruit", "twitter emoji of animal mammal", "google emoji of face smiling"]
generate("assets/tiny-sd", prompts, OUT / "teacher.png", num=4, steps=50, guidance_scale=3.0)

# %% [markdown]
# ## Distil
#
# Prompts are all that is needed: the teacher makes the training images. Every setting of the command line is an argument here;
# sections are dictionaries. `resume=True` continues a run that was interrupted.

# %%
(OUT / "prompts.txt").write_text("\n".join(prompts))
result = distill(
    teacher="assets/tiny-sd",
    steps=[4],
    solvers=["ddim"],
    data={"prompts": str(OUT / "prompts.txt"), "num_synthetic": IMAGES},
    guidance={"scale": 3.0},
    trainer={"max_steps": STEPS, "batch_size": 16, "learning_rate": 4e-4, "num_validation": 32, "trackers": []},
    out=str(OUT / "run"),
    resume=True,
)
result

# %% [markdown]
# ## The student
#
# 4 network calls an image instead of 100. Image k has the same seed in both grids.

# %%
generate(str(result.student_folder), prompts, OUT / "student.png", num=4)

# %% [markdown]
# The sampler gives tensors, in batches. The student's folder opens in plain diffusers as well: its `README.md` has the call.

# %%
sampler = FewStepSampler.from_pretrained(result.student_folder)
for images in sampler.images(prompts, seeds=[0, 1, 2]):
    print(tuple(images.shape), f"from {images.min():.2f} to {images.max():.2f}")
