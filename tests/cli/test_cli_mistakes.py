"""A user's mistake is exit code 2 and one sentence, never a traceback."""

import os
import shutil
import subprocess
import sys

import pytest

from gendistill import cli


@pytest.fixture(scope="module")
def place(tiny_folder, tmp_path_factory):
    """A folder that holds a good teacher and prompts, and all that can be wrong with them."""
    place = tmp_path_factory.mktemp("mistakes")
    (place / "teacher").symlink_to(tiny_folder)
    (place / "prompts.txt").write_text("food\nanimals\n")
    (place / "blank.txt").write_text("\n \n")
    (place / "latin.txt").write_bytes("caf\u00e9".encode("latin-1"))
    (place / "file").write_text("")
    (place / "empty").mkdir()
    (place / "broken.yaml").write_text("a: [")
    (place / "list.yaml").write_text("- a")
    shutil.copytree(tiny_folder, place / "damaged")
    (place / "damaged" / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"not a safetensors file")
    shutil.copytree(tiny_folder, place / "half")
    shutil.rmtree(place / "half" / "vae")
    (place / "family").mkdir()
    (place / "family" / "model_index.json").write_text('{"_class_name": "KolorsPipeline"}')
    (place / "pickle.ckpt").write_bytes(b"")
    (place / "student").mkdir()
    (place / "student" / "gendistill.json").write_text("{}")
    return place


DISTILL = "distill teacher --prompts prompts.txt --out run --set data.cache=cache --device cpu"
SAMPLE = "sample teacher --prompt food --device cpu"
MISTAKES = [
    ("distill nowhere --prompts prompts.txt --out run", "model nowhere does not exist; expects a diffusers pipeline folder"),
    ("distill empty --prompts prompts.txt --out run", "has no model_index.json"),
    ("distill half --prompts prompts.txt --out run", "half cannot be opened as a diffusers pipeline"),
    ("distill damaged --prompts prompts.txt --out run", "model damaged: its unet cannot be opened: Unable to load"),
    (
        "distill family --prompts prompts.txt --out run",
        "family KolorsPipeline is not supported; expects StableDiffusionPipeline,",
    ),
    ("distill pickle.ckpt --prompts prompts.txt --out run", "is a pickle, which may run code"),
    ("distill half --prompts prompts.txt --out run", "it has no vae, which its model_index.json lists as a AutoencoderKL"),
    (f"{DISTILL} --set teacher_config=sd1", "teacher_config sd1: expects a .safetensors checkpoint as the teacher"),
    (f"{DISTILL} --set teacher_revision=main", "teacher_revision main: expects a hub id as the teacher"),
    ("distill teacher --out run", "data.path and data.prompts: expects one of them"),
    (f"{DISTILL} --data images", "data.path and data.prompts: expects one of them"),
    ("distill teacher --data nowhere --out run", "'nowhere' does not exist"),
    ("distill teacher --data empty --out run", "holds no image, no shard and no parquet"),
    ("distill teacher --data prompts.txt --out run", "is a prompt file"),
    ("distill teacher --prompts nowhere.txt --out run", "'nowhere.txt' cannot be read"),
    ("distill teacher --prompts latin.txt --out run", "expects a UTF-8 text file"),
    ("distill teacher --prompts blank.txt --out run", "holds no prompt"),
    (f"{DISTILL} --set trainer.max_step=5", "did you mean trainer.max_steps?"),
    (f"{DISTILL} --set trainer.max_steps=many", "setting trainer.max_steps is 'many'"),
    (f"{DISTILL} --set trainer.max_steps=0", "setting trainer.max_steps is 0"),
    (f"{DISTILL} --set trainer.max_steps", "expects NAME=VALUE"),
    (f"{DISTILL} --set seed.a=1 --seed 1", "seed is a value, not a section"),
    (f"{DISTILL} --set trainer.batch_size=[", "the value is not YAML"),
    (f"{DISTILL} --set trainer.batch_size=5 --set trainer.gradient_accumulation_steps=2", "expects a multiple of"),
    (f"{DISTILL} --set consistency.num_ddim_timesteps=2000", "expects at most the teacher's 1000 timesteps"),
    (f"{DISTILL} --set consistency.num_phases=100", "consistency.num_phases 100: expects at most num_ddim_timesteps (40)"),
    (f"{DISTILL} --steps four", "expects whole numbers, such as 4 or 4,2,1"),
    (f"{DISTILL} --steps 4,0", "expects numbers of at least 1"),
    (f"{DISTILL} --steps 50", "expects at most consistency.num_ddim_timesteps (40)"),
    (f"{DISTILL} --method magic", "setting method is 'magic'"),
    (f"{DISTILL} --method consistancy", "did you mean consistency?"),
    (f"{DISTILL} --set trainer.optimizer=adamv", "did you mean adamw?"),
    (f"{DISTILL} --set max_steps=5", "did you mean trainer.max_steps?"),
    (f"{DISTILL} --metod consistency", "No such option: --metod"),
    (f"{DISTILL} --dtype float8", "setting dtype is 'float8'"),
    (f"{DISTILL} --seed -1", "setting seed is -1"),
    (f"{DISTILL} --lora --set guidance.mode=embedded", "expects 'baked' or 'cfg' with a LoRA"),
    (f"{DISTILL} --config nowhere.yaml", "config nowhere.yaml does not exist"),
    (f"{DISTILL} --config broken.yaml", "is not YAML"),
    (f"{DISTILL} --config list.yaml", "holds a list; expects settings by name"),
    ("distill teacher --prompts prompts.txt --out run --device abacus", "device abacus"),
    ("distill teacher --prompts prompts.txt --out file --device cpu", "out file cannot be created as a folder"),
    ("distill teacher --prompts prompts.txt --out file/run --device cpu", "out file/run cannot be written to: not a directory"),
    ("distill teacher --prompts prompts.txt --out /proc/run", "out /proc/run cannot be written to: no such file or directory"),
    ("distill nowhere --prompts prompts.txt --out run --dry-run", "model nowhere does not exist"),
    ("sample nowhere --prompt food", "model nowhere does not exist"),
    ("sample student --prompt food", "is not a student description of this version"),
    ("sample teacher", "--prompt and --prompts: expects one of them"),
    (f"{SAMPLE} --prompts prompts.txt", "--prompt and --prompts: expects one of them"),
    (f"{SAMPLE} --out a.gif", "expects a .png, a .npy or a folder"),
    (f"{SAMPLE} --out file", "out file cannot be created as a folder"),
    (f"{SAMPLE} --steps 2000", "expects at most 1000"),
    (f"{SAMPLE} --steps 0", "Invalid value for '--steps'"),
    ("sample teacher --prompt food --device abacus", "device abacus"),
    ("evaluate nowhere", "model nowhere does not exist"),
    ("evaluate teacher --reference nowhere --device cpu", "'nowhere' does not exist"),
]


@pytest.mark.parametrize(("command", "sentence"), MISTAKES, ids=[command for command, _ in MISTAKES])
def test_a_mistake_is_one_sentence_and_exit_code_2(place, monkeypatch, capsys, command, sentence):
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "argv", ["gendistill", *command.split()])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    shown = capsys.readouterr()
    assert exit_.value.code == 2
    assert sentence in " ".join(shown.err.split()), shown.err
    assert "Traceback" not in shown.err
    assert shown.out == ""
    assert not (place / "run" / "student").exists()


TWO_COMMANDS = """
import sys
from contextlib import suppress
from gendistill import cli
with suppress(SystemExit):
    sys.argv = "gendistill distill nowhere --out run".split()
    cli.main()
sys.argv = "gendistill sample some/one --prompt a".split()
cli.main()
"""


def test_a_fresh_process_ends_with_code_2_and_one_line(place):
    command, environment = [sys.executable, "-c", TWO_COMMANDS], {**os.environ, "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert ran.returncode == 2, ran.stderr
    of_distill, of_sample = ran.stderr.strip().splitlines()
    assert "error: model nowhere does not exist" in of_distill
    assert "error: model some/one" in of_sample
