"""A pipeline as one file in the original layout."""

from safetensors.torch import save_file

from gendistill.samplers.families import family_of


def save_checkpoint(pipeline, file):
    save_file({name: of.contiguous() for name, of in family_of(pipeline).original_layout.weights(pipeline).items()}, file)
