"""What to look for in drawn pictures beside distances: attributes under neutral prompts, and prompts out of the ordinary."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import yaml
from pydantic import Field

from gendistill.assets import asset_path
from gendistill.settings.section import Section

FILE_NAME = "probes.yaml"


class Attribute(Section):
    """One attribute of what is shown, such as a skin tone.

    Attributes:
        values: by value, the words of a caption that name it, one phrase or several.
        otherwise: the value of captions with none of these words; without it they teach the probe nothing.
        caption: the caption field of the reference that the words are looked for in.
        among: a caption field and the words that it must have: other pictures teach nothing.
        prompts: neutral ones, which leave the attribute open.
        features: what the probe looks at: what the extractor gives, or how much of which colour there is.
    """

    values: dict[str, str | list[str]]
    prompts: list[str] = Field(min_length=1)
    otherwise: str | None = None
    caption: str | None = None
    among: dict[str, str] = Field(default_factory=dict, max_length=1)
    features: Literal["extractor", "colours"] = "extractor"


class Unusual(Section):
    """Prompts that no model was trained on: a text file, or the captions of pictures. Paths are relative to `probes.yaml`."""

    path: str
    caption: str | None = None

    @property
    def with_pictures(self) -> bool:
        """Whether they are captions of pictures, that drawn pictures and probes can be held against."""
        return not self.path.endswith(".txt")


class Probes(Section):
    """The contents of a `probes.yaml`."""

    attributes: dict[str, Attribute] = Field(default_factory=dict)
    unusual: Unusual | None = None

    @staticmethod
    def load(path: Path) -> Probes:
        """Read a file.

        Raises:
            ValueError: there is none, it is no YAML, or a setting is wrong.
        """
        path = Path(asset_path(path))
        try:
            settings = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(f"probes {path}: cannot be read as YAML ({error})") from error
        if not isinstance(settings, dict) or not isinstance(settings.get("attributes", {}), dict):
            raise ValueError(f"probes {path}: takes `attributes`, each with its settings by its name, and `unusual`")
        where = ""
        try:
            for name, attribute in settings.get("attributes", {}).items():
                where = f" attribute {name}:"
                settings["attributes"][name] = Attribute(**attribute)
            where = ""
            probes = Probes(**settings)
        except (TypeError, ValueError) as error:
            raise ValueError(f"probes {path}:{where} {error}") from error
        if probes.unusual is not None:
            probes.unusual = Unusual(path=str(path.parent / probes.unusual.path), caption=probes.unusual.caption)
        return probes

    @staticmethod
    def beside(reference: str) -> Probes:
        """Those of the `probes.yaml` beside a reference's pictures; none where there is no such file."""
        here = Path(asset_path(reference))
        file = (here if here.is_dir() else here.parent) / FILE_NAME
        return Probes.load(file) if file.is_file() else Probes()
