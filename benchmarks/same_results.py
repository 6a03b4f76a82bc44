"""Check that a refactoring changes no result: short runs of all methods in two checkouts, compared bit by bit.

    python benchmarks/same_results.py ../before . --work .cache/same_results
    python benchmarks/same_results.py ../before . --only consistency gan

Each case is a run of 20 steps on a CPU with the command line of each checkout, in a separate process: `distill`, `sample` of
the students, and for some cases `export`. The logs of all stages (losses, gradient norms, validations; not times) and the
tensors of students and exports must be equal; images may differ by 1e-6. The exit code is 1 if there is a difference.

Results are cached in the work folder by the content of a checkout's packages and assets and by the settings of the case: a new
comparison with the same OLD takes half the time, and an interrupted comparison resumes with the first missing case.
`same_results.py X X` runs X twice, and thereby checks that X is deterministic.
"""

import argparse
import hashlib
import json
import math
import os
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor

# Names in NEW by names in OLD: settings by dotted name, figures of log.jsonl, files and folders of a run.
RENAMED: dict[str, str] = {
    "align.own_share": "align.on_policy_fraction",  # words: allowed
    "align.partner": "align.peer",  # words: allowed
    "progressive.dialect_steps": "progressive.prediction_type_steps",  # words: allowed
    "told_apart": "discriminator_accuracy",  # words: allowed
    "discriminator_told_apart": "discriminator_accuracy",  # words: allowed
    "partner_discriminator_told_apart": "peer_discriminator_accuracy",  # words: allowed
    "imitation": "guidance_distillation",  # words: allowed
}
PEER_FIGURES = ("adversarial", "discriminator_gradient_norm", "discriminator_loss", "gradient_norm", "loss", "mutual")
PEER_FIGURES += ("perceptual", "pseudo_huber")
RENAMED |= {f"partner_{figure}": f"peer_{figure}" for figure in PEER_FIGURES}  # words: allowed
PACKAGES = ("samplers", "schedulers", "metrics")  # at the top of a checkout, installed as gendistill.samplers and so on
NOT_RESULTS = ("seconds", "time", "data")  # keys of log lines; `data` describes a cache
TOLERANCE = 1e-6  # for images in [0, 1]
FIGURE_TOLERANCE = 1e-12  # relative, for figures of validations: they depend on the LAPACK that is used
NUM_IMAGES = 48  # number of training images
# Runs the cases one after the other, each in a forked process with the libraries imported: the import takes half of the time.
RUN_CASES = """
import json, os, runpy, shutil, sys, time
from pathlib import Path
import accelerate, diffusers.pipelines.stable_diffusion, open_clip, peft, torch, torchvision, transformers

for name, commands in json.loads(sys.argv[1]):
    shutil.rmtree(name, ignore_errors=True)
    os.mkdir(name)
    started = time.monotonic()
    if child := os.fork():
        if os.waitpid(child, 0)[1]:
            sys.exit(f"{Path(name, 'output.txt').read_text()[-3000:]}\\n{Path(name).absolute()} failed")
        for checkpoints in [*Path(name).rglob("checkpoints")]:
            shutil.rmtree(checkpoints)
        finished = {"commands": commands, "seconds": time.monotonic() - started}
        Path(name, "finished.json").write_text(json.dumps(finished))
        continue
    output = os.open(f"{name}/output.txt", os.O_WRONLY | os.O_CREAT)
    os.dup2(output, 1), os.dup2(output, 2)
    for sys.argv in commands:
        try:
            runpy.run_module("gendistill.cli", run_name="__main__")
        except SystemExit as end:
            if end.code:
                raise
    break
"""


@dataclass(frozen=True)
class Case:
    """A run: settings in addition to COMMON (None removes a setting), its students, and export formats of the first student."""

    settings: dict[str, Any]
    students: tuple[str, ...] = ("student",)
    exports: tuple[str, ...] = ()
    prompts: tuple[str, ...] = ("google emoji of food fruit", "twitter emoji of animal mammal")
    steps: int | None = None


COMMON: dict[str, Any] = {
    "teacher": "assets/tiny-sd",
    "device": "cpu",
    "seed": 3,
    "steps": [2, 1],
    "data.path": "images.tar.gz",
    "data.caption": "subcategory",
    "data.cache": "cache",
    "trainer.max_steps": 20,
    "trainer.batch_size": 4,
    "trainer.learning_rate": 1e-3,
    "trainer.warmup_steps": 2,
    "trainer.log_every": 1,
    "trainer.validate_every": 10,
    "trainer.checkpoint_every": 20,
    "trainer.num_validation": 8,
    "trainer.trackers": [],
}
LORA = {"lora.enabled": True, "lora.rank": 4}
PROMPTS = {"data.path": None, "data.prompts": "prompts.txt", "data.num_synthetic": 12, "data.synthetic_steps": 2}
PROGRESSIVE = {"method": "progressive", "progressive.start_steps": 8, "progressive.prediction_type_steps": 4, "steps": [2, 4]}
PROGRESSIVE |= {"trainer.max_steps": 8, "trainer.validate_every": 8}
ALIGNED = {"method": "latent_alignment", "solvers": ["ddim"], "align.trajectories": 16, "align.trajectory_steps": 4}
ADVERSARY = {"align.distribution.adversarial": 0.1, "align.match.perceptual": 0.1}
MATCHED = {"method": "distribution_matching", "solvers": ["ddim"]}
HALF = {"compress.factor": 2, "compression.steps": 2}
CASES: dict[str, Case] = {
    "consistency": Case({}, exports=("diffusers", "checkpoint", "onnx")),
    "consistency-lora": Case(LORA, exports=("lora", "kohya", "diffusers")),
    "consistency-embedded": Case({"guidance.mode": "embedded", "guidance.range": [1, 4], **PROMPTS}),
    "consistency-cfg": Case({"guidance.mode": "cfg"}),
    "consistency-phases": Case({"consistency.num_phases": 2, "consistency.loss": "l2", "consistency.target": "student"}),
    "consistency-align": Case({"align.weight": 0.5, "align.trajectories": 16, "align.trajectory_steps": 4}),
    "consistency-int8": Case({"quantization": "int8"}),
    "consistency-accumulated": Case({"trainer.gradient_accumulation_steps": 2, "trainer.gradient_checkpointing": True}),
    "consistency-compressed": Case({**HALF, "compression.trainer": {"max_steps": 10}}),
    "compression": Case({"method": "compression", **HALF, "steps": [4], "compression.relations.distance": 0.1}, steps=4),
    "progressive": Case(PROGRESSIVE, students=("student-2", "student-4")),
    "progressive-lora": Case({**PROGRESSIVE, **LORA}, students=("student-2", "student-4")),
    "alignment": Case({**ALIGNED, **PROMPTS, "align.on_policy_fraction": 0.3, "align.distribution.patches": 1.0}),
    "alignment-lora": Case({**ALIGNED, **LORA, "align.semantic.clip": 0.1, "align.semantic.distance": 0.1}),
    "alignment-mutual": Case({**ALIGNED, **ADVERSARY, "align.peer": "mutual"}),
    "matching": Case({**MATCHED, **PROMPTS}),
    "matching-lora": Case({**MATCHED, **LORA, "distribution_matching.segments": True, "solvers": ["tcd"]}),
    "decoder": Case({"method": "decoder", "decoder.width": 16, "decoder.blocks": 1, "decoder.patches": 0.1}, steps=4),
    "gan": Case(
        {
            "teacher": "assets/tiny-gan",
            "method": "gan",
            "data.caption": "category",
            "compress.factor": 4,
            "gan.pairs": 32,
            "gan.adversarial": 0.05,
            "gan.distribution.patches": 1.0,
            "gan.distribution.real_patches": 1.0,
            "steps": None,
        },
        prompts=(),
    ),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("old", type=Path, help="checkout before the change")
    parser.add_argument("new", type=Path, help="checkout after the change")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), metavar="NAME", help=", ".join(CASES))
    parser.add_argument("--work", type=Path, default=Path(".cache/same_results"), help="folder of the runs")
    parser.add_argument("--fresh", action="store_true", help="run finished cases again, in both checkouts")
    args = parser.parse_args()
    old, new = (prepared(args.work.absolute() / side, getattr(args, side).resolve()) for side in ("old", "new"))
    table = Table("case", "losses", "weights", "images differ by at most", "seconds old", "seconds new")
    differences, totals = [], [0.0, 0.0]
    run_missing(old, args.only, {new_name: old_name for old_name, new_name in RENAMED.items()}, args.fresh)
    run_missing(new, args.only, {}, args.fresh)
    for name in args.only:
        folders = [old / name, new / name]
        seconds = [json.loads((folder / "finished.json").read_text())["seconds"] for folder in folders]
        totals = [total + time for total, time in zip(totals, seconds, strict=True)]
        losses, weights, (images, distance) = (
            compare(*folders) for compare in (differing_logs, differing_tensors, image_distance)
        )
        differences += [f"{name}: {difference}" for difference in (losses, weights, images) if difference]
        equal = ["differ" if difference else "equal" for difference in (losses, weights)]
        table.add_row(name, *equal, f"{distance:.1e}", *(f"{time:.0f}" for time in seconds))
        print(f"{name}: {'differs' if losses or weights or images else 'same'}", file=sys.stderr, flush=True)
    table.add_section()
    table.add_row("all", "", "", "", *(f"{total:.0f}" for total in totals))
    Console(width=120).print(table)
    print("\n".join(differences) or "same results")
    sys.exit(bool(differences))


def prepared(work: Path, checkout: Path) -> Path:
    """A working folder for a checkout: links to its packages in the installed layout and to its assets, and a data set."""
    content = hashlib.sha256()
    for path in sorted(path for name in ("gendistill", *PACKAGES, "assets") for path in (checkout / name).rglob("*")):
        if path.is_file() and path.suffix != ".pyc":
            content.update(str(path.relative_to(checkout)).encode() + path.read_bytes())
    folder = work / content.hexdigest()[:16]
    (folder / "gendistill").mkdir(parents=True, exist_ok=True)
    links = {f"gendistill/{path.name}": path for path in (checkout / "gendistill").iterdir() if path.name != "__pycache__"}
    links |= {f"gendistill/{package}": checkout / package for package in PACKAGES}
    # in the working folder, and in the package folder
    links |= dict.fromkeys(("assets", "gendistill/assets"), checkout / "assets")
    for name, target in links.items():
        if not (folder / name).exists():
            (folder / name).unlink(missing_ok=True)
            (folder / name).symlink_to(target)
    (folder / "prompts.txt").write_text("google emoji of food fruit\ntwitter emoji of animal mammal\nflag of a country\n")
    images = folder / "images.tar.gz"
    if not images.exists():
        with (
            tarfile.open(checkout / "assets/emoji/heldout-000.tar.gz") as full,
            tarfile.open(folder / "subset", "w:gz") as subset,
        ):
            for member in full.getmembers()[: 3 * NUM_IMAGES]:  # image, caption and fields of each sample
                subset.addfile(member, full.extractfile(member))
        (folder / "subset").rename(images)
    program = "from importlib.util import find_spec as f; print(f('gendistill').origin, f('gendistill.metrics').origin)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True)
    if done.stdout.split() != [str(folder / "gendistill" / name) for name in ("__init__.py", "metrics/__init__.py")]:
        sys.exit(f"{checkout}: Python imports other packages: {done.stdout}{done.stderr}; expects those of the checkout")
    return folder


def environment(folder: Path) -> dict[str, str]:
    """The environment of a run: one thread, no GPU, no network, no bytecode in the checkout."""
    variables = {"PYTHONPATH": folder, "PYTHONPYCACHEPREFIX": folder.parents[1] / "bytecode", "OMP_NUM_THREADS": 1}
    variables |= {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": 1, "ACCELERATE_LOG_LEVEL": "error"}
    return {**os.environ, **{name: str(value) for name, value in variables.items()}}


def run_missing(side: Path, names: list[str], renamed: dict[str, str], fresh: bool) -> None:
    """Run the cases whose results are missing, unfinished or from other settings."""
    missing = []
    for name in names:
        requested = [["gendistill", *command] for command in commands(CASES[name], name, renamed)]
        mark = side / name / "finished.json"
        if fresh or not mark.exists() or json.loads(mark.read_text())["commands"] != requested:
            missing.append((name, requested))
    if missing:
        run = [sys.executable, "-W", "ignore", "-c", RUN_CASES, json.dumps(missing)]
        if code := subprocess.run(run, cwd=side, env=environment(side)).returncode:
            sys.exit(code)


def commands(case: Case, name: str, renamed: dict[str, str]) -> Iterator[list[str]]:
    """Command lines of a case with relative paths, the same for both checkouts except for `renamed` settings."""
    settings = {key: value for key, value in (COMMON | case.settings | {"out": f"{name}/run"}).items() if value is not None}
    teacher = settings.pop("teacher")
    yield ["distill", teacher, *(f"--set={renamed.get(key, key)}={json.dumps(value)}" for key, value in settings.items())]
    students = {student: f"{name}/run/{student}" for student in case.students}
    exported = {form: f"{name}/{form}{'' if form in ('diffusers', 'onnx') else '.safetensors'}" for form in case.exports}
    for form, out in exported.items():
        # a folder in half precision is diffusers' variant fp16, which `sample` does not open
        dtype = ["--dtype", "float32"] if form == "diffusers" else []
        yield ["export", students["student"], "--format", form, "--out", out, *dtype]
    generated = students | {form: out for form, out in exported.items() if form == "diffusers"}
    options = ["--num", "2", "--device", "cpu", *(f"--prompt={prompt}" for prompt in case.prompts)]
    options += [] if case.steps is None else ["--steps", str(case.steps)]
    for student, path in generated.items():
        yield ["sample", path, *options, "--out", f"{name}/{student}.npy"]


def files(folder: Path, pattern: str, renamed: dict[str, str]) -> dict[str, Path]:
    """Files of results by their path in the NEW checkout."""
    paths = sorted(folder.rglob(pattern))
    return {"/".join(renamed.get(part, part) for part in path.relative_to(folder).parts): path for path in paths}


def pairs(old: Path, new: Path, pattern: str) -> tuple[dict[str, tuple[Path, Path]], str]:
    """Pairs of files by name, and a sentence if a file exists in one checkout alone."""
    old_files, new_files = files(old, pattern, RENAMED), files(new, pattern, {})
    unpaired = sorted(old_files.keys() ^ new_files.keys())
    difference = f"only one has {', '.join(unpaired)}" if unpaired else ""
    return {name: (old_files[name], new_files[name]) for name in sorted(old_files.keys() & new_files.keys())}, difference


def differing_logs(old: Path, new: Path) -> str:
    """A sentence about the first different log line, without times."""
    logs, difference = pairs(old, new, "log.jsonl")
    if difference or not logs:
        return difference or "no log.jsonl"
    for name, paths in logs.items():
        old_lines, new_lines = ([json.loads(line) for line in path.read_text().splitlines()] for path in paths)
        if len(old_lines) != len(new_lines):
            return f"{name} has {len(old_lines)} lines, then {len(new_lines)}"
        for old_line, new_line in zip(old_lines, new_lines, strict=True):
            before = {RENAMED.get(key, key): value for key, value in old_line.items()}
            for key in sorted(before.keys() | new_line.keys()):
                if key not in NOT_RESULTS and not equal(before.get(key), new_line.get(key), figures=key == "validation"):
                    return f"{name}, step {before['step']}: {key} is {before.get(key)}, then {new_line.get(key)}"
    return ""


def equal(a: Any, b: Any, *, figures: bool) -> bool:
    """Whether two logged values are equal: losses to the last digit, `figures` of a validation within their tolerance."""
    if isinstance(a, dict) and isinstance(b, dict):
        return a.keys() == b.keys() and all(equal(a[key], b[key], figures=figures) for key in a)
    if figures and isinstance(a, float) and isinstance(b, float):
        return math.isclose(a, b, rel_tol=FIGURE_TOLERANCE)
    return repr(a) == repr(b)


def differing_tensors(old: Path, new: Path) -> str:
    """A sentence about the first different tensor of students and exports."""
    weights, difference = pairs(old, new, "*.safetensors")
    if difference or not weights:
        return difference or "no weights"
    for name, paths in weights.items():
        before, after = map(load_file, paths)
        if before.keys() != after.keys():
            return f"{name}: only one has {', '.join(sorted(before.keys() ^ after.keys())[:5])}"
        for key, tensor in before.items():
            if bits(tensor) != bits(after[key]):
                same_shape = tensor.shape == after[key].shape
                by = f" by at most {(tensor.double() - after[key].double()).abs().max():.2e}" if same_shape else " in shape"
                return f"{name}: {key} differs{by}"
    programs, difference = pairs(old, new, "*.onnx")
    for name, (before_path, after_path) in programs.items():
        if constants(before_path) != constants(after_path):
            return f"{name}: its constants differ"
    return difference


def bits(tensor: Tensor) -> tuple[str, tuple[int, ...], str]:
    """Dtype, shape and SHA-256 of the bytes of a tensor."""
    raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
    return str(tensor.dtype), tuple(tensor.shape), hashlib.sha256(raw).hexdigest()


def constants(path: Path) -> list[tuple[str, tuple[int, ...], str]]:
    """The constants of an ONNX program, sorted by content, as their names depend on the traced code."""
    arrays = [onnx.numpy_helper.to_array(initializer) for initializer in onnx.load(path).graph.initializer]
    return sorted(bits(torch.from_numpy(array.copy())) for array in arrays)


def image_distance(old: Path, new: Path) -> tuple[str, float]:
    """A sentence if images differ by more than the tolerance, and the maximum difference."""
    generated, difference = pairs(old, new, "*.npy")
    distances = {name: float(np.abs(np.load(before) - np.load(after)).max()) for name, (before, after) in generated.items()}
    far = [f"{name} by {distance:.1e}" for name, distance in distances.items() if not distance <= TOLERANCE]
    return difference or (f"images differ: {', '.join(far)}" if far else ""), max(distances.values(), default=float("nan"))


if __name__ == "__main__":
    main()
