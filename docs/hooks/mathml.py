"""Formulas become MathML when the site is built: browsers show it without a script, also without a network."""

from __future__ import annotations

import html
import re
from typing import Any

from latex2mathml.converter import convert

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_page_content(content: str, **_: Any) -> str:
    """Replace what pymdownx.arithmatex marked; called by MkDocs with the HTML of a page."""

    def mathml(found: re.Match[str]) -> str:
        tag, tex = found.groups()
        return f'<{tag} class="formula">{convert(html.unescape(tex), display="block" if tag == "div" else "inline")}</{tag}>'

    return FORMULA.sub(mathml, content)
