"""scripts/distill_sd.py, a training with its loop in sight, and the front door that it and others go through."""

import subprocess
import sys
from pathlib import Path

from warm_process import ran_warm

import gendistill
from gendistill import FewStepSampler, distill, load_config, load_teacher

SCRIPT = Path(__file__).parents[2] / "scripts" / "distill_sd.py"
FEW = {
    "steps": [1],
    "data.num_synthetic": 4,
    "data.synthetic_steps": 2,
    "trainer.max_steps": 2,
    "trainer.batch_size": 2,
    "trainer.num_validation": 2,
    "trainer.trackers": [],
    "device": "cpu",
}


def test_the_script_trains_a_student_that_the_sampler_opens(tiny_folder, tmp_path):
    (tmp_path / "prompts.txt").write_text("food\nanimals\n")
    given = {
        **FEW,
        "teacher": tiny_folder,
        "data.path": "null",
        "data.caption": "null",
        "data.prompts": "prompts.txt",
        "lora.enabled": "true",
        "lora.rank": 2,
        "out": "run",
    }
    code = f"import runpy; runpy.run_path({str(SCRIPT)!r}, run_name='__main__')"
    ran = ran_warm(code, *(f"{name}={value}" for name, value in given.items()), folder=tmp_path)
    assert ran.returncode == 0, ran.stderr
    sampler = FewStepSampler.from_pretrained(tmp_path / "run" / "student")
    (images,) = sampler.images(["food"], [0], num_inference_steps=1)
    assert images.shape[:2] == (1, 3)


def test_the_front_door_opens_without_torch_and_distills_by_settings_in_python(tiny_folder, tmp_path, monkeypatch):
    bare = "import sys, gendistill; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", bare], timeout=60).returncode == 0
    assert set(gendistill.__all__) <= set(dir(gendistill))
    monkeypatch.chdir(tmp_path)
    Path("prompts.txt").write_text("food\nanimals\n")
    settings = {name: value for name, value in FEW.items() if "." not in name}
    data = {"prompts": "prompts.txt", "num_synthetic": 4, "synthetic_steps": 2}
    trainer = {"max_steps": 1, "batch_size": 2, "num_validation": 2, "trackers": []}
    result = distill(teacher=str(tiny_folder), data=data, trainer=trainer, out="run", **settings)
    assert load_config(Path("run/config.yaml")).teacher == str(tiny_folder)
    assert load_teacher(tiny_folder).network.config.sample_size == result.networks.teacher.network.config.sample_size
