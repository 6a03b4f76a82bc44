"""Students in the formats of other programs: each opens again and samples what the student samples."""

import gc
import json
import resource
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from fresh_process import FreshProcess, gendistill, limit, ran
from peft import LoraConfig
from safetensors import safe_open
from safetensors.torch import load_file
from tiny_runs import settings_of

from gendistill.export import runtimes
from gendistill.export.formats import export
from gendistill.export.kohya import kohya_weights
from gendistill.run.distill import distill
from gendistill.runtime.files import new_folder
from gendistill.samplers import FewStepSampler, StudentSpec
from gendistill.samplers.families import family_of
from gendistill.samplers.layouts.unet_layout import BIAS_OF_V, StableDiffusionLayout, StableDiffusionXLLayout, unet_name
from gendistill.samplers.loading import open_pipeline
from gendistill.samplers.single_file import ARCHITECTURES
from gendistill.sampling.load_add_ons import with_lora
from gendistill.training.stopping import StopSignals

HALF = 2e-2  # of an image that half precision may change


@pytest.fixture(scope="module")
def student(family_folder, tmp_path_factory):
    """student(family, lora): the folder of a student that has moved away from its teacher."""
    made = {}

    def folder_of(family, lora=False, **changes):
        key = (family, lora, *changes.items())
        if key not in made:
            place = tmp_path_factory.mktemp("students")
            rate = {"trainer__learning_rate": 1e-2, "trainer__max_steps": 3, "lora__enabled": lora}
            config = settings_of(place, family_folder(family), "run", **rate, **changes)
            made[key] = distill(config).student_folder
        return made[key]

    return folder_of


@pytest.mark.parametrize(
    ("family", "lora", "kind"),
    [
        ("sd1", False, "diffusers"),
        ("sd1", True, "checkpoint"),
        ("sd2", True, "diffusers"),
        ("sd2", False, "checkpoint"),
        ("sdxl", False, "diffusers"),
        ("sdxl", True, "checkpoint"),
        ("sd3-without-t5", True, "diffusers"),
    ],
)
def test_a_whole_student_opens_again(student, tmp_path, family, lora, kind):
    out = tmp_path / {"diffusers": "folder", "checkpoint": "one.safetensors"}[kind]
    assert export(str(student(family, lora)), kind, out).max_error < HALF
    if kind == "diffusers":  # in float16, by names that open without an argument
        assert not list(out.rglob("*.fp16.*"))
        assert FewStepSampler.from_pretrained(out).spec.num_inference_steps == (2,)
    other = tmp_path / f"float32-{out.name}"
    assert export(str(student(family, lora)), kind, other, dtype="float32").max_error < 1e-4
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("kind", ["lora", "kohya"])
def test_a_lora_opens_again_on_its_teacher(student, family_folder, tmp_path, family, kind):
    folder = student(family, lora=True)
    assert export(str(folder), kind, tmp_path / "lora.safetensors", dtype="float32").max_error < 1e-4
    ours, theirs = (FewStepSampler.from_pretrained(of) for of in (folder, family_folder(family)))
    theirs.pipeline.scheduler = ours.pipeline.scheduler
    generated = [next(iter(of.images(["food"], [0], num_inference_steps=2, guidance_scale=1.0))) for of in (ours, theirs)]
    assert (generated[0] - generated[1]).abs().max() > 0.01  # it does something


KEYS = {
    "sd3": ("transformer.transformer_blocks.0.attn.to_q.lora_A.weight", "joint_blocks.0.x_block.attn.qkv"),
    "flux": ("transformer.transformer_blocks.0.attn.to_q.lora_A.weight", "double_blocks.0.img_attn.qkv"),
}


@pytest.mark.parametrize("family", KEYS)
def test_a_lora_of_a_transformer_opens_from_every_format(student, family_folder, tmp_path, family):
    key, original = KEYS[family]
    names = {
        "lora": key,
        "kohya": f"lora_unet_{original.replace('.', '_')}.lora_down.weight",
        "checkpoint": f"model.diffusion_model.{original}.weight",
    }
    for kind, name in names.items():
        folder = student(family, lora=True, data__resolution=32)
        exported = export(str(folder), kind, tmp_path / f"{kind}.safetensors", dtype="float32")
        assert exported.max_error < 1e-4
        assert name in load_file(exported.path)
    copied, unfit, _ = with_lora(open_pipeline(family_folder(family)), tmp_path / "kohya.safetensors")
    assert not unfit
    assert copied.get_active_adapters()


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
def test_every_key_of_kohyas_format_is_that_of_a_weight(student, family):
    """ComfyUI looks for the original names and for diffusers', each with underscores."""
    pipeline = FewStepSampler.from_pretrained(student(family, lora=True)).pipeline
    adapter = pipeline.get_active_adapters()[0]
    network = UNet2DConditionModel.from_config(pipeline.unet.config)
    names = [name for name in network.state_dict() if name.endswith(".weight")]
    known = {unet_name(name, network.config) for name in names} if family == "sdxl" else set(names)
    known = {"lora_unet_" + name.removesuffix(".weight").replace(".", "_") for name in known}
    keys = {key.split(".")[0] for key in kohya_weights(pipeline, family_of(pipeline).original_layout, adapter, torch.float32)}
    assert keys
    assert keys <= known


@pytest.mark.parametrize(
    ("architecture", "count", "names"),
    [
        (
            "sd1",
            192,  # modules of a U-Net, as kohya's scripts say when they begin
            ["down_blocks_0_attentions_0_proj_in", "mid_block_attentions_0_transformer_blocks_0_attn2_to_out_0"],
        ),
        (
            "sdxl",
            722,
            ["input_blocks_4_1_proj_in", "middle_block_1_transformer_blocks_9_attn2_to_v", "output_blocks_5_1_proj_out"],
        ),
    ],
)
def test_the_published_lists_of_names(architecture, count, names):
    with torch.device("meta"):
        network = UNet2DConditionModel.from_config(json.loads((ARCHITECTURES / architecture / "unet/config.json").read_text()))
        inside = r".*attentions\.\d+\.(proj_in|proj_out|transformer_blocks.*(to_[qkv]|to_out\.0|ff\.net\.0\.proj|ff\.net\.2))"
        network.add_adapter(LoraConfig(r=4, lora_alpha=2, target_modules=inside), "speed")
    kind = {"sd1": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}[architecture]
    pipeline = type(kind, (), {"unet": network})()
    weights = kohya_weights(_on_cpu(pipeline), family_of(pipeline).original_layout, "speed", torch.float16)
    assert len(weights) == 3 * count
    assert all(f"lora_unet_{name}.lora_down.weight" in weights for name in names)
    assert {float(of) for name, of in weights.items() if name.endswith(".alpha")} == {2.0}


def _on_cpu(pipeline):
    """With numbers for its adapter."""
    for layer in pipeline.unet.modules():
        for part in ("lora_A", "lora_B"):
            if hasattr(layer, part):
                getattr(layer, part).to_empty(device="cpu")
    return pipeline


def test_a_checkpoint_says_what_it_is(student, tmp_path):
    file = export(str(student("sd2")), "checkpoint", tmp_path / "one.safetensors").path
    with safe_open(file, "pt") as opened:
        told = opened.metadata()
        assert {"v_pred", "ztsnr"} <= set(opened.keys())
    assert told["modelspec.architecture"] == "stable-diffusion-v2"
    assert told["modelspec.prediction_type"] == "v"
    assert told["modelspec.usage_hint"].startswith("2 steps, ddim, CFG 1")


@pytest.mark.parametrize(("kind", "lora"), [("checkpoint", False), ("checkpoint", True), ("lora", True), ("kohya", True)])
def test_a_prediction_type_that_other_programs_would_not_see_is_refused_with_the_way_out(student, tmp_path, kind, lora):
    folder = shutil.copytree(student("sd1", lora=lora), tmp_path / "student")
    for file in (folder / "gendistill.json", folder / "scheduler" / "scheduler_config.json"):
        file.write_text(file.read_text().replace('"prediction_type": "epsilon"', '"prediction_type": "v_prediction"'))
    out = tmp_path / "one.safetensors"
    with pytest.raises(
        ValueError, match=r"predicts v_prediction, but ComfyUI.* --set progressive\.prediction_type=epsilon, or"
    ):
        export(str(folder), kind, out)
    assert not out.exists()


def test_checkpoints_of_2_x_are_told_apart_by_a_bias_and_those_of_xl_by_a_key():
    second = {"cond_stage_model.model.ln_final.bias": torch.zeros(1)}
    small, large = ({BIAS_OF_V: spread * torch.linspace(-1, 1, 64), **second} for spread in (0.05, 0.5))
    one, xl = StableDiffusionLayout(), StableDiffusionXLLayout()
    for layout, kind, weights in ((xl, "v_prediction", {}), (one, "v_prediction", large), (one, "epsilon", {})):
        marks = layout.marks(DDIMScheduler(prediction_type=kind), weights)
        assert set(marks) == ({"v_pred"} if kind == "v_prediction" else set())
    for layout, kind, weights in ((one, "v_prediction", small), (one, "v_prediction", {}), (xl, "sample", {})):
        assert layout.marks(DDIMScheduler(prediction_type=kind), weights) is None


def test_the_original_layout_has_every_weight_once(student):
    pipeline = FewStepSampler.from_pretrained(student("sdxl")).pipeline
    parts = [getattr(pipeline, name) for name in ("unet", "vae", "text_encoder", "text_encoder_2")]
    numbers = sum(parameter.numel() for part in parts for parameter in part.parameters())
    assert (
        sum(
            of.numel()
            for name, of in family_of(pipeline).original_layout.weights(pipeline).items()
            if "position_ids" not in name
        )
        == numbers
    )


def test_statistics_of_latents_have_no_place_in_a_checkpoint(family_folder):
    pipeline = open_pipeline(family_folder("sdxl"))
    release_of = family_of(pipeline).original_layout.release
    assert release_of(pipeline) == "stable-diffusion-xl-v1-base"
    pipeline.vae.register_to_config(latents_mean=[0.0] * 4, latents_std=[1.0] * 4)
    with pytest.raises(ValueError, match="has no latents_mean and latents_std of a VAE; expects --format diffusers"):
        release_of(pipeline)


OF_RUNTIME = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1] + "/vae_decoder/model.onnx", providers=["CPUExecutionProvider"])
[given] = session.get_inputs()
images = session.run(None, {given.name: numpy.zeros((3, 4, 8, 8), numpy.float32)})[0]
assert "torch" not in sys.modules
print(given.name, images.shape)
"""


def open_programs_and_be_told_to_stop(student, programs):
    runtimes.open_programs(FewStepSampler.from_pretrained(student), programs, "openvino")
    gc.collect()
    with StopSignals() as stop:
        signal.raise_signal(signal.SIGTERM)
    print("told to stop by", stop.number)


@pytest.fixture(scope="module")
def programs(student, tmp_path_factory):
    """programs(kind, family): the folder of an export, its error, and the programs that ran for it with their numbers of rows.

    The networks are traced once, for ONNX: what is converted to OpenVINO are the same files.
    """
    made = {}

    def exported(kind, family, **changes):
        if (kind, family) in made:
            return made[kind, family]
        folder, ran = tmp_path_factory.mktemp(kind) / "programs", []

        def opened(file, *given, open_program=runtimes._open):
            run = open_program(file, *given)
            return lambda *tensors: ran.append((file.parent.name, len(tensors[0]))) or run(*tensors)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runtimes, "_open", opened)
            if kind == "openvino":
                traced, _, _ = exported("onnx", family, **changes)
                patch.setattr(runtimes, "traced", lambda *network: None)
                patch.setattr(runtimes, "write_onnx", lambda file, *_, **__: copy_program(traced, file.parent))
            error = export(str(student(family, **changes)), kind, folder).max_error
        made[kind, family] = folder, error, ran
        return made[kind, family]

    return exported


def copy_program(programs, folder):
    for file in (programs / folder.name).glob("model.onnx*"):
        shutil.copy(file, folder)


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("sd1", {"lora": True}),
        pytest.param("sd2", {"guidance__mode": "embedded"}, marks=pytest.mark.slow),
        pytest.param("sdxl", {}, marks=pytest.mark.slow),
    ],
)
def test_programs_sample_what_the_student_samples_and_need_no_torch(student, programs, tmp_path, kind, family, changes):
    for package in ("onnxruntime", "openvino")[: 1 if kind == "onnx" else 2]:
        pytest.importorskip(package)
    folder, error, ran = programs(kind, family, **changes)
    assert error < 1e-4
    assert {name for name, _ in ran} >= {"text_encoder", "unet", "vae_decoder", "vae_encoder"}
    assert {rows for name, rows in ran if name != "text_encoder"} == {1}  # traced with two
    assert not list(folder.rglob("*.safetensors"))
    assert [file.name for file in (folder / "unet").glob("*.onnx")] == ["model.onnx"] * (kind == "onnx")
    assert StudentSpec.load(folder).num_inference_steps == (2,)
    assert json.loads((folder / "model_index.json").read_text())["tokenizer"][0] == "transformers"
    if (kind, family) == ("onnx", "sd1"):
        command = [sys.executable, "-c", OF_RUNTIME, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert done.stdout.split("\n")[0] == "latent_sample (3, 3, 32, 32)"
    if (kind, family) == ("openvino", "sd1"):  # whose runtimes, come and gone, once left a signal no stack to be handled on
        work = partial(open_programs_and_be_told_to_stop, student(family, **changes), folder)
        process = FreshProcess(work, tmp_path / "told.txt")
        assert process.wait() == 0, process.text
        assert process.text.endswith(f"told to stop by {signal.SIGTERM:d}")


@pytest.mark.parametrize(
    ("given", "kind", "sentence"),
    [
        ({"lora": False}, "kohya", "the student is a full network; expects one that was distilled with --lora"),
        ({"guidance__mode": "embedded"}, "checkpoint", "the original layout has no guidance embedding"),
        ({}, "gguf", "--format gguf: expects one of diffusers, checkpoint"),
    ],
)
def test_what_a_format_has_no_place_for_is_one_sentence(student, tmp_path, given, kind, sentence):
    with pytest.raises(ValueError, match=sentence):
        export(str(student("sd1", **given)), kind, tmp_path / "one.safetensors")
    with pytest.raises(ValueError, match="--dtype float16: --format onnx expects float32"):
        export("nowhere", "onnx", tmp_path / "programs", dtype="float16")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["diffusers", "onnx", "openvino"])
def test_a_folder_with_something_in_it_is_refused_and_keeps_it(student, tmp_path, monkeypatch, kind):
    shutil.copytree(student("sd1"), tmp_path / "run" / "student")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "cat.jpg").write_text("precious")
    (tmp_path / ".images").mkdir()
    (tmp_path / "file").write_text("precious")
    before = contents(tmp_path)
    monkeypatch.chdir(tmp_path / "run")
    for out, found in {
        "../images": "holds cat.jpg,",
        ".": "holds student,",
        "student": "holds ",
        "../file": "is a file",
    }.items():
        with pytest.raises(
            ValueError, match=f"^--out {(tmp_path / 'run' / out).resolve()}: {found}.* expects a new or an empty"
        ):
            export("student", kind, Path(out))
    assert contents(tmp_path) == before


def test_an_empty_folder_becomes_the_export_and_nothing_beside_it_is_touched(student, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / ".new").mkdir()
    (tmp_path / ".new" / "settings").write_text("precious")
    export(str(student("sd1")), "diffusers", tmp_path / "new")
    assert (tmp_path / "new" / "model_index.json").is_file()
    assert sorted(path.name for path in tmp_path.rglob(".*")) == [".new"]
    assert (tmp_path / ".new" / "settings").read_text() == "precious"


def test_a_folder_that_is_filled_while_the_student_is_written_is_kept(tmp_path):
    def fill_both():
        with new_folder(tmp_path / "out") as temporary:
            temporary.mkdir()
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "cat.jpg").write_text("precious")

    with pytest.raises(ValueError, match="cannot be written: Directory not empty"):
        fill_both()
    assert contents(tmp_path) == {tmp_path / "out" / "cat.jpg": b"precious"}


def test_a_file_that_exists_is_refused_and_keeps_its_content(student, tmp_path):
    shutil.copytree(student("sd1"), tmp_path / "student")
    (tmp_path / "old.safetensors").write_text("precious")
    (tmp_path / "link.safetensors").symlink_to("old.safetensors")
    (tmp_path / "a.safetensors").mkdir()
    before = contents(tmp_path)
    for out, sentence in {
        "a.safetensors": "is a folder; expects the name of a file",
        "student/unet/diffusion_pytorch_model.safetensors": "exists and would be lost; expects a new name",
        "old.safetensors": "exists and would be lost",
        "link.safetensors": "exists and would be lost",
        "student.v1.5": r"expects a \.safetensors file, such as student\.v1\.5\.safetensors",
    }.items():
        with pytest.raises(ValueError, match=sentence):
            export(str(tmp_path / "student"), "checkpoint", tmp_path / out)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(("kind", "name"), [("checkpoint", "one.safetensors"), ("diffusers", "folder")])
def test_a_disk_that_does_not_accept_the_export_is_one_sentence(student, tmp_path, kind, name):
    command = ["export", student("sd1"), "--format", kind, "--out", tmp_path / name]
    process = gendistill(command, tmp_path / "output.txt", before=partial(limit, resource.RLIMIT_FSIZE, 100_000))
    assert process.wait() == 2, process.text
    assert f"{tmp_path / name} cannot be written: File too large" in process.text
    assert list(tmp_path.iterdir()) == [tmp_path / "output.txt"]


def contents(folder):
    """The bytes of every file below a folder."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("kind", ["onnx", "openvino"])
def test_a_model_of_pixels_has_no_programs(family_folder, tmp_path, kind):
    with pytest.raises(
        ValueError, match=f"--format {kind}: expects a text-to-image model with a U-Net; this is a DDPMPipeline"
    ):
        export(str(family_folder("unconditional")), kind, tmp_path / "programs")
    assert not list(tmp_path.iterdir())


def test_the_command_line_says_how_near_it_is(student, tmp_path):
    done = ran("export", student("sd1", lora=True), "--format", "kohya", "--out", tmp_path / "l.safetensors")
    assert "opened again by diffusers' load_lora_weights: its image is within 0.0" in " ".join(done.stdout.split())
    assert load_file(tmp_path / "l.safetensors")
    done = ran("export", student("sd1", lora=True), "--format", "kohya", "--out", tmp_path / "l.bin")
    assert done.returncode == 2
    assert "expects a .safetensors file" in " ".join(done.stderr.split())


@pytest.mark.parametrize(("kind", "name"), [("checkpoint", "one.safetensors"), ("diffusers", "folder")])
def test_a_student_of_8_bits_goes_to_other_programs_with_all_its_weights(student, tmp_path, kind, name):
    exported = export(str(student("sd1", quantization="int8")), kind, tmp_path / name)
    assert exported.max_error < HALF
