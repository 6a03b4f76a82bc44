"""Programs that are broken or meant to harm: one sentence, nothing of them is run."""

import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from harmful import Harmful, harmful_bytes, sentence
from torch import nn

from gendistill.gan.programs import open_program


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    """A working directory, in which nothing was run afterwards."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not os.path.exists("owned")


class Paint(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 48)

    def forward(self, z):
        return torch.tanh(self.fc(z)).view(-1, 3, 4, 4)


def exported(path="p.pt2", batch=torch.export.Dim.DYNAMIC):
    torch.export.save(torch.export.export(Paint().eval(), (torch.zeros(2, 4),), dynamic_shapes=({0: batch},)), path)
    return path


def rewritten(path, change):
    """The same archive with members as `change(name, bytes)` gives them: bytes, or None to leave one out."""
    with zipfile.ZipFile(path) as before:
        members = {name: before.read(name) for name in before.namelist()}
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as after:
        for name, held in members.items():
            held = change(name, held)
            if held is not None:
                after.writestr(name, held)
    return path


def in_graph(edit):
    def change(name, held):
        if not name.endswith("models/model.json"):
            return held
        model = json.loads(held)
        edit(model)
        return json.dumps(model).encode()

    return change


def first_size(model):
    """The first size of the program that is not a number."""
    sizes = [size for of in model["graph_module"]["graph"]["tensor_values"].values() for size in of["sizes"]]
    return next(size["as_expr"] for size in sizes if "as_expr" in size)


HARMFUL = {
    "sample inputs": lambda name, held: harmful_bytes() if "sample_inputs" in name else held,
    "pickled weights": lambda name, held: (
        held.replace(b'"use_pickle": false', b'"use_pickle": true')
        if name.endswith("weights_config.json")
        else harmful_bytes()
        if "weights/weight_" in name
        else held
    ),
    "a size": in_graph(lambda model: first_size(model).update(expr_str="open('owned', 'w')")),
    "a size that never ends": in_graph(lambda model: first_size(model).update(expr_str="9**9**9**9")),
    "powers of powers": in_graph(
        lambda model: first_size(model).update(expr_str="Pow(Pow(Integer(9), Integer(9)), Pow(Integer(9), Integer(9)))")
    ),
    "a size of an object": in_graph(lambda model: first_size(model).update(expr_str="Symbol('s0').func.__init__.__globals__")),
    "an operator": in_graph(lambda model: model["graph_module"]["graph"]["nodes"][0].update(target="torch.os.system")),
    "an operator that reads": in_graph(
        lambda model: model["graph_module"]["graph"]["nodes"][0].update(target="torch.ops.aten.from_file.default")
    ),
    "a getter": in_graph(lambda model: model["graph_module"]["graph"]["nodes"][0].update(target="_operator.attrgetter")),
    "a name": in_graph(lambda model: model["graph_module"]["graph"]["nodes"][0].update(name="x=open('owned','w');y")),
    "a container": lambda name, held: (
        held.replace(b"builtins.tuple", b"collections.defaultdict") if name.endswith("models/model.json") else held
    ),
    "constants": lambda name, held: (
        b'{"config": {"c": {"path_name": "opaque_obj_0", "is_param": false, "use_pickle": false, "tensor_meta": null}}}'
        if name.endswith("constants_config.json")
        else held
    ),
}


WHY = {
    "sample inputs": "sample_inputs/model.pt is a pickle of io.open",
    "pickled weights": "holds pickled weights",
    "a size": "has the size open('owned', 'w')",
    "a size that never ends": "has the size 9**9**9**9",
    "powers of powers": "has the size Pow(Pow(",
    "a size of an object": "has the size Symbol('s0').func",
    "an operator": "calls torch.os.system",
    "an operator that reads": "calls torch.ops.aten.from_file.default",
    "a getter": "calls _operator.attrgetter",
    "a name": "has the name",
    "a container": "collections.defaultdict",
    "constants": "holds opaque_obj_0",
}


@pytest.mark.parametrize("name", HARMFUL)
def test_a_program_that_would_run_code_is_not_opened(name):
    said = sentence(rewritten(exported(), HARMFUL[name]))
    assert WHY[name] in said
    assert "which may run code when opened, so it was not" in said


def test_a_program_with_a_compiled_library_is_not_opened():
    path = exported()
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("p/data/aotinductor/model/library.so", b"ELF")
    assert "may run code" in sentence(path)


def test_a_size_that_is_no_expression_is_told_in_a_sentence():
    for size in ("s0 +", "(" * 1500, "\0"):
        assert "is no JSON of a program" in sentence(
            rewritten(exported(), in_graph(lambda model, size=size: first_size(model).update(expr_str=size)))
        )


def test_a_program_within_which_torch_would_look_for_an_older_one_is_not_opened():
    path = rewritten(
        exported(), in_graph(lambda model: model["graph_module"]["graph"]["nodes"][0].update(target="torch.ops.aten.x"))
    )
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("version", "8.1")
        archive.writestr("serialized_state_dict.pt", harmful_bytes())
        archive.writestr("serialized_exported_program.json", "{}")
    assert "program p.pt2" in sentence(path)


def test_guards_of_a_program_are_not_run():
    """They are Python, which torch would run to check what goes in."""
    path = rewritten(exported(), in_graph(lambda model: model.update(guards_code=["open('owned', 'w')"])))
    assert open_program(path)(torch.zeros(3, 4)).shape == (3, 3, 4, 4)


def test_the_pickles_of_these_tests_do_run_code():
    torch.load(io.BytesIO(harmful_bytes()), weights_only=False).close()
    assert os.path.exists("owned")
    os.remove("owned")


def test_torchscript_that_writes_a_file_is_not_opened():
    traced = torch.jit.trace(Paint(), (torch.zeros(2, 4),))
    traced.save("p.pt")
    path = rewritten("p.pt", lambda name, held: held.replace(b"torch.tanh(", b"torch. save(") if name.endswith(".py") else held)
    assert "calls save, which may run code" in sentence(path)


def test_torchscript_with_objects_of_c_is_not_opened():
    torch.jit.trace(Paint(), (torch.zeros(2, 4),)).save("p.pt")
    path = rewritten("p.pt", lambda name, held: held.replace(b"fc :", b"fc : __torch__.torch.classes.x.Y\n  fd :"))
    assert "calls torch.classes, which may run code" in sentence(path)


@pytest.mark.parametrize("name", ["p.pt", "p.pt2"])
def test_a_program_that_would_fill_the_memory_is_not_opened(name):
    if name == "p.pt":
        torch.jit.trace(Paint(), (torch.zeros(2, 4),)).save(name)
    else:
        exported()
    with zipfile.ZipFile(name, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{archive.namelist()[0].split('/')[0]}/extra/zeros", bytes(2**27))
    assert "would fill the memory" in sentence(name)


def test_a_program_of_one_batch_size_is_told_in_a_sentence():
    assert "takes batches of 3 alone" in sentence(_static())


def _static():
    torch.export.save(torch.export.export(Paint().eval(), (torch.zeros(3, 4),)), "s.pt2")
    return "s.pt2"


@pytest.mark.parametrize("name", ["p.pt", "p.pt2"])
def test_a_file_that_is_no_program_is_told_in_a_sentence(name):
    torch.save({"fc.weight": torch.zeros(2)}, name)
    assert "is no program but a state_dict" in sentence(name)
    for held in (b"", b"PK\x03\x04", b"not a program", pickle.dumps(Harmful())):
        Path(name).write_bytes(held)
        assert "is no program" in sentence(name)
    with zipfile.ZipFile(name, "w") as archive:
        archive.writestr("other/readme.txt", "hello")
    assert "is no program" in sentence(name)


def test_a_cut_program_is_told_in_a_sentence():
    whole = Path(exported()).read_bytes()
    Path("p.pt2").write_bytes(whole[: len(whole) // 2])
    assert "program p.pt2" in sentence("p.pt2")
    for left_out in ("model.json", "weight_0", "weights_config.json", "archive_version"):
        Path("p.pt2").write_bytes(whole)
        assert "program p.pt2" in sentence(
            rewritten("p.pt2", lambda name, held, end=left_out: None if name.endswith(end) else held)
        )
