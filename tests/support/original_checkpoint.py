"""A pipeline as one file in the original layout."""

from safetensors.torch import save_file

from gendistill.export.original_layout import original_weights


def save_checkpoint(pipeline, file):
    save_file({name: of.contiguous() for name, of in original_weights(pipeline).items()}, file)
