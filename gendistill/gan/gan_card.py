"""The model card of a GAN student: what it is, how to open it in three ways, where it comes from."""

from __future__ import annotations

from typing import Any

from gendistill.gan.gan_folder import Gan

CARD = """\
---
library_name: gendistill
pipeline_tag: {task}
base_model: {teacher}
license: {licence}
tags: [gendistill, distillation, gan]
---

# Student of {teacher}

{what}

## How to open it

{usages}
## Lineage

| | |
|---|---|
{provenance}
"""

GENDISTILL = """\
With gendistill{importable}:

```python
from gendistill.gan.gan_folder import open_gan

generator = open_gan("PATH_OF_THIS_FOLDER").generator
images = generator(*generator.example(4))  # (4, {out}) in [-1, 1]
```
"""

TORCH = """\
With torch alone:

```python
import torch

generator = torch.export.load("PATH_OF_THIS_FOLDER/generator.pt2").module()
images = generator({call})  # (4, {out}) in [{low:g}, {high:g}]
```
"""

ONNXRUNTIME = """\
With onnxruntime:

```python
import numpy as np
import onnxruntime

generator = onnxruntime.InferenceSession("PATH_OF_THIS_FOLDER/generator.onnx")
images = generator.run(None, {{{feed}}})[0]  # (4, {out}) in [{low:g}, {high:g}]
```
"""


def gan_card(gan: Gan, provenance: dict[str, Any], *, program: bool, onnx: bool) -> str:
    """README.md of a student's folder. `provenance` is told as it is, one row a key; `licence` and `teacher` go to the head.

    Args:
        program, onnx: whether these files are there.
    """
    spec = gan.generator.spec
    low, high = spec.output_range
    values = {"out": ", ".join(map(str, spec.output_shape)), "low": low, "high": high}
    shape = ", ".join(map(str, (4, *spec.input_shape)))
    span = f"* {high - low:g} + {low:g}"
    generated, numbers = {
        "noise": (f"torch.randn({shape})", f"np.random.randn({shape}).astype(np.float32)"),
        "image": (f"torch.rand({shape}) {span}", f"(np.random.rand({shape}) {span}).astype(np.float32)"),
    }[spec.kind]
    labels = [k % spec.num_classes for k in range(4)] if spec.num_classes else None
    call = generated if labels is None else f"{generated}, torch.tensor({labels})"
    feed = f'"{spec.kind}": {numbers}' + ("" if labels is None else f', "labels": np.array({labels})')
    module = gan.generator_source.class_path.partition(":")[0]
    importable = "" if module.startswith("gendistill.") else f", where the module `{module}` is importable"
    usages = [GENDISTILL.format(importable=importable, **values)]
    usages += [TORCH.format(call=call, **values)] if program else []
    usages += [ONNXRUNTIME.format(feed=feed, **values)] if onnx else []
    return CARD.format(
        task="unconditional-image-generation" if spec.kind == "noise" else "image-to-image",
        teacher=_in_a_row(provenance.get("teacher", "unknown")),
        licence=_in_a_row(provenance.get("licence", "unknown")),
        what=_what(gan),
        usages="\n".join(usages),
        provenance="\n".join(f"| {_in_a_row(name)} | {_in_a_row(value)} |" for name, value in provenance.items()),
    )


def _what(gan: Gan) -> str:
    spec = gan.generator.spec
    goes_in = "x".join(map(str, spec.input_shape))
    taken = f"{goes_in} numbers of noise" if spec.kind == "noise" else f"a {goes_in} image"
    classes = f" and one of {spec.num_classes} classes" if spec.num_classes else ""
    given = "x".join(map(str, spec.output_shape))
    sentence = f"A generator, distilled by gendistill: {taken}{classes} in, a {given} image out."
    names = "; ".join(f"{number}: {name}" for number, name in enumerate(spec.classes))
    return f"{sentence}\n\nClasses: {names}." if names else sentence


def _in_a_row(value: Any) -> str:
    """Text that a table of Markdown keeps in one cell."""
    return " ".join(str(value).split()).replace("|", "\\|")
