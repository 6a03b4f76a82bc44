"""gendistill: slow generative models in, fast ones out."""

__version__ = "0.1.0"
