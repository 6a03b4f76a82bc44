"""The settings of a `probes.yaml`: attributes to classify in images of neutral prompts, and unusual prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field

from gendistill.assets import asset_path
from gendistill.settings.section import Section

FILE_NAME = "probes.yaml"


class Attribute(Section):
    """An attribute of the depicted things, such as a skin tone.

    Attributes:
        values: the phrase or phrases of a caption that name each value.
        otherwise: value of captions without any of these phrases; by default such images are not used for training the probe.
        caption: the caption field of the reference that is searched for the phrases.
        among: a caption field and words that it must contain; other images are not used for training the probe.
        prompts: neutral prompts, which do not mention the attribute.
        features: input of the probe: the extractor's features, or colour histograms.
    """

    values: dict[str, str | list[str]]
    prompts: list[str] = Field(min_length=1)
    otherwise: str | None = None
    caption: str | None = None
    among: dict[str, str] = Field(default_factory=dict, max_length=1)
    features: Literal["extractor", "colours"] = "extractor"


class Unusual(Section):
    """Prompts outside the training data: a text file, or captions of images. Paths are relative to `probes.yaml`."""

    path: str
    caption: str | None = None

    @property
    def with_images(self) -> bool:
        """Whether the prompts are captions of images, which serve as held-out real images."""
        return not self.path.endswith(".txt")


class Probes(Section):
    """The contents of a `probes.yaml`."""

    attributes: dict[str, Attribute] = Field(default_factory=dict)
    unusual: Unusual | None = None

    @staticmethod
    def load(path: Path) -> Probes:
        """Read a file.

        Raises:
            ValueError: the file is missing, not YAML, or a setting is invalid.
        """
        path = Path(asset_path(path))
        try:
            settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(f"probes {path}: cannot be read as YAML ({error})") from error
        if not isinstance(settings, dict) or not isinstance(settings.get("attributes", {}), dict):
            raise ValueError(f"probes {path}: expects `attributes`, a mapping of names to settings, and `unusual`")
        location = ""
        try:
            for name, attribute in settings.get("attributes", {}).items():
                location = f" attribute {name}:"
                settings["attributes"][name] = Attribute(**attribute)
            location = ""
            probes = Probes(**settings)
        except (TypeError, ValueError) as error:
            raise ValueError(f"probes {path}:{location} {error}") from error
        if probes.unusual is not None:
            probes.unusual = Unusual(path=str(path.parent / probes.unusual.path), caption=probes.unusual.caption)
        return probes

    @staticmethod
    def for_reference(reference: str) -> Probes:
        """The probes of the `probes.yaml` next to a reference's images; empty without such a file."""
        path = Path(asset_path(reference))
        file = (path if path.is_dir() else path.parent) / FILE_NAME
        return Probes.load(file) if file.is_file() else Probes()
