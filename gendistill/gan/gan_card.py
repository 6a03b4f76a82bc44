"""The model card of a GAN student: description, usage with gendistill, torch and onnxruntime, and provenance."""

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

{description}

## Usage

{usage}
## Provenance

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
With PyTorch:

```python
import torch

generator = torch.export.load("PATH_OF_THIS_FOLDER/generator.pt2").module()
images = generator({call})  # (4, {out}) in [{low:g}, {high:g}]
```
"""

ANY_SIZE = """\
The programs expect images of any height and width that the network can compute.
"""

ONNXRUNTIME = """\
With ONNX Runtime:

```python
import numpy as np
import onnxruntime

generator = onnxruntime.InferenceSession("PATH_OF_THIS_FOLDER/generator.onnx")
images = generator.run(None, {{{feed}}})[0]  # (4, {out}) in [{low:g}, {high:g}]
```
"""


def gan_card(gan: Gan, provenance: dict[str, Any], *, program: bool, onnx: bool, any_size: bool = False) -> str:
    """The README.md of a student folder.

    Args:
        provenance: one table row per key; `licence` and `teacher` also go into the metadata.
        program, onnx: whether the folder contains these files.
        any_size: whether they expect images of any height and width.
    """
    spec = gan.generator.spec
    low, high = spec.output_range
    values = {"out": ", ".join(map(str, spec.output_shape)), "low": low, "high": high}
    shape = ", ".join(map(str, (4, *spec.input_shape)))
    span = f"* {high - low:g} + {low:g}"
    torch_input, numpy_input = {
        "noise": (f"torch.randn({shape})", f"np.random.randn({shape}).astype(np.float32)"),
        "image": (f"torch.rand({shape}) {span}", f"(np.random.rand({shape}) {span}).astype(np.float32)"),
    }[spec.kind]
    labels = [k % spec.num_classes for k in range(4)] if spec.num_classes else None
    call = torch_input if labels is None else f"{torch_input}, torch.tensor({labels})"
    feed = f'"{spec.kind}": {numpy_input}' + ("" if labels is None else f', "labels": np.array({labels})')
    module = gan.generator_source.class_path.partition(":")[0]
    importable = "" if module.startswith("gendistill.") else f" (the module `{module}` must be importable)"
    usage = [GENDISTILL.format(importable=importable, **values)]
    usage += [TORCH.format(call=call, **values)] if program else []
    usage += [ONNXRUNTIME.format(feed=feed, **values)] if onnx else []
    usage += [ANY_SIZE] if any_size else []
    return CARD.format(
        task="unconditional-image-generation" if spec.kind == "noise" else "image-to-image",
        teacher=_table_cell(provenance.get("teacher", "unknown")),
        licence=_table_cell(provenance.get("licence", "unknown")),
        description=_description(gan),
        usage="\n".join(usage),
        provenance="\n".join(f"| {_table_cell(name)} | {_table_cell(value)} |" for name, value in provenance.items()),
    )


def _description(gan: Gan) -> str:
    spec = gan.generator.spec
    input_size, output_size = ("x".join(map(str, shape)) for shape in (spec.input_shape, spec.output_shape))
    inputs = f"Gaussian noise of size {input_size}" if spec.kind == "noise" else f"a {input_size} image"
    classes = f" and one of {spec.num_classes} classes" if spec.num_classes else ""
    sentence = f"A GAN generator distilled with gendistill. Input: {inputs}{classes}. Output: a {output_size} image."
    names = "; ".join(f"{number}: {name}" for number, name in enumerate(spec.classes))
    return f"{sentence}\n\nClasses: {names}." if names else sentence


def _table_cell(value: Any) -> str:
    """A value as text for one cell of a Markdown table."""
    return " ".join(str(value).split()).replace("|", "\\|")
