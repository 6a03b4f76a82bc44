"""Input that is broken, mistaken or meant to harm: one sentence, exit code 2, nothing run, nothing lost."""

import dataclasses
import io
import json
import os
import pickle
import shutil
import struct
import sys
import tarfile
import zlib
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import torch
from fresh_process import ran
from PIL import Image
from safetensors.torch import load_file, save_file

from gendistill import cli
from gendistill.data.sources.prompts import Prompts
from gendistill.samplers import StudentSpec


class Opened:
    """Unpickling it makes a file."""

    def __reduce__(self):
        return os.mkdir, ("owned",)


PICKLE = pickle.dumps(Opened())


def png(size=(32, 32)):
    file = io.BytesIO()
    Image.new("RGB", size, "red").save(file, "PNG")
    return file.getvalue()


def bomb(edge=30_000):
    """A PNG of a few hundred bytes that asks for gigabytes."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", edge, edge, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")


def tar(*members, name="x.tar"):
    """A shard with a good sample and then `members`: (name, type, link name, size that is claimed)."""
    with tarfile.open(name, "w:gz" if name.endswith("gz") else "w", format=tarfile.GNU_FORMAT) as archive:
        for member, data in (("good.png", png()), ("good.txt", b"food")):
            info = tarfile.TarInfo(member)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for member, kind, link, size in members:
            info = tarfile.TarInfo(member)
            info.type, info.linkname = kind, link
            if kind == tarfile.REGTYPE and size is None:
                info.size = len(png())
                archive.addfile(info, io.BytesIO(png()))
            else:
                info.size = size or 0
                archive.fileobj.write(info.tobuf(tarfile.GNU_FORMAT))
    return name


def member(name, kind=tarfile.REGTYPE, link="", size=None):
    return lambda: tar((name, kind, link, size))


def cut(name):
    noise = io.BytesIO()
    Image.effect_noise((200, 200), 90).save(noise, "PNG")
    with tarfile.open(name, "w:gz" if name.endswith("gz") else "w") as archive:
        info = tarfile.TarInfo("a.png")
        info.size = noise.tell()
        archive.addfile(info, io.BytesIO(noise.getvalue()))
    Path(name).write_bytes(Path(name).read_bytes()[:5000])
    return name


def folder(**files):
    Path("folder").mkdir()
    for name, data in files.items():
        (Path("folder") / name.replace("__", ".")).write_bytes(data)
    return "folder"


def file(name, data):
    Path(name).write_bytes(data)
    return name


def parquet(**columns):
    pyarrow.parquet.write_table(pyarrow.table(columns), "x.parquet")
    return "x.parquet"


def damaged_parquet():
    noise = [os.urandom(2000) for _ in range(500)]
    path = Path(parquet(image=[{"bytes": data, "path": None} for data in noise], text=["food " * 50] * 500))
    data = path.read_bytes()
    return file("x.parquet", data[:100] + b"\xff" * 5000 + data[5100:])


def ten(**files):
    """Ten images, the first with a caption, and other files."""
    return folder(**{f"{number}__png": png() for number in range(10)}, **{"0__txt": b"food"}, **files)


def one(image):
    return folder(a__png=image, a__txt=b"food")


IMAGES = {
    "a member that climbs out": (member("../climbs.png"), "holds '../climbs.png', outside its folder"),
    "a member that climbs out further down": (member("a/../../climbs.png"), "outside its folder"),
    "an absolute member": (member("/tmp/absolute.png"), "holds '/tmp/absolute.png', outside its folder"),
    "a member on a drive": (member("C:\\windows.png"), "outside its folder"),
    "a symbolic link": (member("link.png", tarfile.SYMTYPE, "/etc/passwd"), "holds 'link.png', a link or device"),
    "a hard link": (member("link.png", tarfile.LNKTYPE, "/etc/passwd"), "holds 'link.png', a link or device"),
    "a device": (member("zero.png", tarfile.CHRTYPE), "holds 'zero.png', a link or device"),
    "a pipe": (member("pipe.png", tarfile.FIFOTYPE), "holds 'pipe.png', a link or device"),
    "a member of a terabyte": (member("big.png", size=2**40), "of 1099511627776 bytes; expects at most 536870912"),
    "a shard cut short": (lambda: cut("cut.tar"), "the shard cut.tar cannot be read"),
    "a compressed shard cut short": (lambda: cut("cut.tar.gz"), "the shard cut.tar.gz cannot be read"),
    "a shard that is none": (lambda: file("fake.tar", b"<html>not found</html>"), "the shard fake.tar cannot be read"),
    "a gzip that is none": (lambda: file("fake.tar.gz", b"<html>not found</html>"), "the shard fake.tar.gz cannot be read"),
    "a pickle": (lambda: file("data.pkl", PICKLE), "'data.pkl' is not a shard"),
    "a checkpoint": (lambda: file("data.pt", PICKLE), "'data.pt' is not a shard"),
    "a folder of pickles": (lambda: folder(a__pt=PICKLE, b__pkl=PICKLE), "holds no image, no shard and no parquet"),
    "a pickle that is called an image": (lambda: one(PICKLE), "1 of 1 images of"),
    "a pickle that is called a shard": (lambda: file("data.tar", PICKLE), "the shard data.tar cannot be read"),
    "a pickle that is called parquet": (lambda: file("x.parquet", PICKLE), "'x.parquet' cannot be opened as a dataset"),
    "an empty folder": (folder, "holds no image, no shard and no parquet"),
    "a folder of texts": (lambda: folder(a__txt=b"food", b__md=b"# food"), "holds no image, no shard and no parquet"),
    "a bomb": (lambda: one(bomb()), "1 of 1 images of"),
    "a bomb in ten": (lambda: ten(a__png=bomb()), "1 of 11 images of"),
    "an empty image": (lambda: one(b""), "cannot be decoded; expects at most 5%"),
    "half an image": (lambda: one(png()[:60]), "cannot be decoded; expects at most 5%"),
    "a program that is called an image": (lambda: one(b"%!PS\n(owned) (w) file"), "cannot be decoded"),
    "metadata that is no JSON": (lambda: ten(metadata__jsonl=b"{"), "line 1 of metadata.jsonl in folder expects an object"),
    "metadata that is no text": (lambda: ten(metadata__jsonl=b"\xff\xfe\0\0"), "cannot be read"),
    "images without captions": (lambda: folder(a__png=png()), "none of 1 images in folder has a caption (found none of"),
    "parquet without images": (lambda: parquet(a=[1], b=["food"]), "'x.parquet' holds no images, only a, b"),
    "parquet that is damaged inside": (damaged_parquet, "'x.parquet' cannot be read to its end"),
    "parquet of paths": (lambda: parquet(image=[{"bytes": None, "path": "/etc/passwd"}], text=["a"]), "cannot be"),
    "parquet of addresses": (lambda: parquet(image=["http://localhost/a.png"], text=["a"]), "holds no images"),
    "a dataset that may change": (lambda: "hf://datasets/some/one@main", "is not pinned"),
    "a dataset that is not there": (lambda: "nowhere.parquet", "cannot be opened as a dataset (no such file)"),
    "images and parquet": (lambda: ten(x__parquet=b""), "holds both images and dataset"),
}


def tree():
    """Every file here and what it holds, but for what a run writes."""
    files = [path for path in sorted(Path().rglob("*")) if path.is_file() and path.parts[0] not in ("cache", "run")]
    return {str(path): path.read_bytes() for path in files}


PROMPTS = {
    "blank lines": (b"\n \r\n\t\n", "holds no prompt"),
    "a mark and nothing else": (b"\xef\xbb\xbf", "holds no prompt"),
    "a line of a megabyte": (b"food\n" + b"a" * 2**20, "line 2 has 1048576 characters; expects at most 10000"),
    "another encoding": ("food".encode("utf-16"), "expects a UTF-8 text file"),
    "zero bytes": (b"food\0\n", "a zero byte"),
    "an image": (png(), "expects a UTF-8 text file"),
    "a pickle": (PICKLE, "prompts: "),
}


SETTINGS = {
    "data.split=test": "is not a dataset; they must be unset",
    "data.missing_caption=error": "'1.png' of 10 images in folder (caption: txt) has no caption",
    "data.missing_caption=guess": "setting data.missing_caption is 'guess'",
    "data.crop=smart": "setting data.crop is 'smart'",
    "data.crop=buckets --set data.resolution=30": "data.resolution 30: expects a multiple of 8, such as 24 or 32",
    "data.cache=folder/0.png": "data.cache folder/0.png cannot be written: Not a directory",
}


def teacher(change):
    """A copy of the good teacher after `change(its folder)`."""

    def make():
        shutil.copytree("teacher", "other")
        change(Path("other"))
        return "other"

    return make


def with_code(place):
    """A pipeline whose UNet is a class of its own."""
    index = json.loads((place / "model_index.json").read_text())
    (place / "model_index.json").write_text(json.dumps(index | {"unet": ["evil", "Evil"]}))
    (place / "unet" / "evil.py").write_text("import os\nos.mkdir('owned')\nclass Evil: pass\n")


def with_pickled_weights(place):
    for weights in place.glob("unet/*.safetensors"):
        weights.unlink()
    (place / "unet" / "diffusion_pytorch_model.bin").write_bytes(PICKLE)


def with_numbers_that_are_none(place):
    (weights,) = place.glob("unet/*.safetensors")
    tensors = load_file(weights)
    tensors["conv_out.bias"][0] = float("nan")
    save_file(tensors, weights)


def without_weights(weights, words):
    """A pipeline in whose file of weights those are missing whose names have `words` in them."""

    def change(place):
        tensors = load_file(place / weights)
        kept = {name: tensor for name, tensor in tensors.items() if words not in name}
        assert len(kept) < len(tensors)
        save_file(kept, place / weights, metadata={"format": "pt"})

    return change


def with_a_lora_that_is_not_fused(place):
    """The names that PEFT gives a network's own weights while a LoRA is beside them."""
    tensors = load_file(place / WEIGHTS)
    save_file({name.replace(".to_q.", ".to_q.base_layer."): of for name, of in tensors.items()}, place / WEIGHTS)


def with_settings(part, **settings):
    def change(place):
        path = place / part
        path.write_text(json.dumps(json.loads(path.read_text()) | settings))

    return change


def with_bytes(part, data):
    return lambda place: (place / part).write_bytes(data)


def student(**settings):
    def make():
        spec = StudentSpec("consistency", "teacher", (4,), "ddim", "DDIMScheduler", {}, "baked", 3.0, lora=True)
        Path("student").mkdir()
        dataclasses.replace(spec, **settings).save(Path("student"))
        return "student"

    return make


def lora_in(folder):
    Path(folder).mkdir(exist_ok=True)
    save_file({"unet.conv_in.lora_A.weight": torch.zeros(2)}, f"{folder}/pytorch_lora_weights.safetensors")
    return folder


WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
TEACHERS = {
    "no UNet": (teacher(lambda place: shutil.rmtree(place / "unet")), "it has no unet, which its model_index.json lists"),
    "no tokenizer": (teacher(lambda place: shutil.rmtree(place / "tokenizer")), "it has no tokenizer"),
    "an index that is a list": (teacher(with_bytes("model_index.json", b"[]")), "its model_index.json is no JSON object"),
    "an index that is no JSON": (teacher(with_bytes("model_index.json", b"{")), "cannot be opened as a diffusers pipeline"),
    "code of its own": (teacher(with_code), "other cannot be opened as a diffusers pipeline"),
    "pickled weights": (teacher(with_pickled_weights), "it has no .safetensors weights in unet, and others are not read"),
    "weights that are a pickle": (teacher(with_bytes(WEIGHTS, PICKLE)), "model other: its unet cannot be opened: "),
    "weights of nothing": (teacher(with_bytes(WEIGHTS, b"")), "model other: its unet cannot be opened: "),
    "weights of other shapes": (
        teacher(with_settings("unet/config.json", block_out_channels=[16, 48])),
        "its unet cannot be opened: Cannot load because down_blocks.1.attentions.0.norm.bias expected shape",
    ),
    "weights that are no numbers": (
        teacher(with_numbers_that_are_none),
        "its unet has weights that are not finite (conv_out.bias)",
    ),
    "no weights of a layer of the text encoder": (
        teacher(without_weights("text_encoder/model.safetensors", "layers.0.mlp")),
        "other lacks 4 of the weights of its text_encoder (encoder.layers.0.mlp.fc1.bias, "
        "encoder.layers.0.mlp.fc1.weight, encoder.layers.0.mlp.fc2.bias and 1 more); expects all of them",
    ),
    "no weights of a layer of the UNet": (
        teacher(without_weights(WEIGHTS, "conv_in")),
        "other lacks 2 of the weights of its unet (conv_in.bias, conv_in.weight); expects all of them",
    ),
    "no weights of a layer of the VAE": (
        teacher(without_weights("vae/diffusion_pytorch_model.safetensors", "decoder.conv_out.bias")),
        "other lacks 1 of the weights of its vae (decoder.conv_out.bias); expects all of them",
    ),
    "a LoRA that is not fused": (teacher(with_a_lora_that_is_not_fused), "its unet has weights of a LoRA that is not fused"),
    "a text encoder of other shapes": (
        teacher(with_settings("text_encoder/config.json", intermediate_size=48)),
        "of its text_encoder have other shapes than its config expects",
    ),
    "a config that is no JSON": (teacher(with_bytes("unet/config.json", b"{")), "model other: its unet cannot be opened: "),
    "a network for inpainting": (teacher(with_settings("unet/config.json", in_channels=9)), "its unet cannot be opened: "),
    "a dialect that nobody knows": (
        teacher(with_settings("scheduler/scheduler_config.json", prediction_type="magic")),
        "prediction_type 'magic' is not known; expects epsilon,",
    ),
    "a file that is none": (lambda: file("a.safetensors", b"<html>not found</html>"), "a.safetensors is no safetensors file"),
    "a file that claims too much": (lambda: file("a.safetensors", b"\xff" * 64), "a.safetensors is no safetensors file"),
    "a pickle": (lambda: file("a.ckpt", PICKLE), "a.ckpt is a pickle, which may run code"),
    "a LoRA": (
        lambda: f"{lora_in('.')}/pytorch_lora_weights.safetensors",
        "model pytorch_lora_weights.safetensors is a LoRA, which needs its model; expects the model that the LoRA was",
    ),
    "the LoRA of a student": (
        lambda: f"{lora_in(student()())}/pytorch_lora_weights.safetensors",
        "is a LoRA, which needs its model; expects the folder of the student, student",
    ),
    "a LoRA without the settings of its student": (
        lambda: lora_in("student"),
        "student has no model_index.json and no gendistill.json that names the model of its LoRA; expects a diffusers pipeline",
    ),
    "a component": (
        lambda: f"{teacher(lambda folder: None)()}/unet/diffusion_pytorch_model.safetensors",
        "is the unet of a pipeline; expects its folder, other",
    ),
    "a folder named like markup": (lambda: "[/red]", "model [/red] does not exist"),
    "a hub id with a path": (lambda: "../etc/passwd", "model ../etc/passwd does not exist"),
    "a student": (lambda: student(lora=False)(), "student has no model_index.json"),
}
STUDENTS = {
    "a scheduler that is none": (student(scheduler_class="DiffusionPipeline"), "scheduler_class 'DiffusionPipeline'"),
    "a scheduler that nobody knows": (student(scheduler_class="os.system"), "scheduler_class 'os.system'"),
    "no teacher": (student(teacher="nowhere/at/all"), "model nowhere/at/all does not exist"),
    "no weights": (student(), "student cannot be opened as a LoRA"),
}
CONFIGS = {
    "a program": (b"teacher: !!python/object/apply:os.mkdir [owned]", "config run.yaml is not YAML"),
    "a typo": (b"trainer: {max_step: 5}", "did you mean trainer.max_steps?"),
    "a value for a section": (b"trainer: 5", "setting trainer is 5"),
    "bytes": (b"\xff\xfe\x00", "config run.yaml is not YAML"),
    "a number that is none": (b"trainer: {learning_rate: .nan}", "setting trainer.learning_rate is nan"),
    "endless names": (b"a: &a [*a, *a]", "setting a is not known"),
}
TYPOS = {
    "--method consistancy": "did you mean consistency?",
    "--metod consistency": "No such option: --metod",
    "--set trainer.max_step=5": "did you mean trainer.max_steps?",
    "--set trainer.batch_size=[": "the value is not YAML",
    "--set trainer.learning_rate=inf": "setting trainer.learning_rate is inf",
    "--set [/red]=1": "[/red]",
    "--steps four": "expects whole numbers, such as 4 or 4,2,1",
    "--dtype float8": "setting dtype is 'float8'",
}

DISTILL = "distill teacher --out run --device cpu --set data.cache=cache --set data.num_synthetic=4"
CASES = {
    **{f"images: {name}": (lambda make=make: f"{DISTILL} --data {make()}", told) for name, (make, told) in IMAGES.items()},
    **{
        f"prompts: {name}": (lambda data=data: f"{DISTILL} --prompts {file('other.txt', data)}", told)
        for name, (data, told) in PROMPTS.items()
    },
    **{
        f"setting: {name}": (lambda name=name: f"{DISTILL} --data {ten()} --set {name}", told)
        for name, told in SETTINGS.items()
    },
    **{
        f"teacher: {name}": (lambda make=make: f"{DISTILL.replace('teacher', make())} --prompts prompts.txt", told)
        for name, (make, told) in TEACHERS.items()
    },
    **{
        f"student: {name}": (lambda make=make: f"sample {make()} --prompt food --device cpu", told)
        for name, (make, told) in STUDENTS.items()
    },
    **{
        f"config: {name}": (lambda data=data: f"{DISTILL} --prompts prompts.txt --config {file('run.yaml', data)}", told)
        for name, (data, told) in CONFIGS.items()
    },
    **{f"typo: {name}": (lambda name=name: f"{DISTILL} --prompts prompts.txt {name}", told) for name, told in TYPOS.items()},
}


@pytest.mark.parametrize("case", CASES)
def test_hostile_input_is_one_sentence(place, monkeypatch, capsys, case):
    make, sentence = CASES[case]
    command = make()
    before = tree()
    monkeypatch.setattr(sys, "argv", ["gendistill", *command.split()])
    with pytest.raises(SystemExit) as exit_:
        cli.main()
    shown = capsys.readouterr()
    assert (exit_.value.code, shown.out) == (2, ""), shown.err
    assert sentence in " ".join(shown.err.split()), shown.err
    assert "Traceback" not in shown.err
    assert shown.err.count("error: ") <= 1
    assert tree() == before
    assert not Path("owned").exists()
    assert not Path("run/student").exists()


def test_a_fresh_process_refuses_a_shard_that_climbs_out_and_writes_nothing(place):
    tar(("../climbs.png", tarfile.REGTYPE, "", None))
    refused = ran(*DISTILL.split(), "--data", "x.tar")
    assert (refused.returncode, refused.stdout) == (2, ""), refused.stderr
    assert "error: data: the shard x.tar holds '../climbs.png', outside its folder" in refused.stderr
    assert len(refused.stderr.strip().splitlines()) == 1, refused.stderr
    assert not (place.parent / "climbs.png").exists()


def test_prompts_of_any_script_and_line_end_are_kept_as_they_are(tmp_path):
    texts = ["a 🦊 in snow", "קטה על מחצלת", "‏قطة‏", "一只猫", "e\u0301te\u0301", "line\u2028separator"]
    for end in ("\n", "\r\n", "\r"):
        (tmp_path / "prompts.txt").write_bytes(("\ufeff" + end.join([*texts, "", " "])).encode())
        assert list(Prompts(tmp_path / "prompts.txt")) == texts
