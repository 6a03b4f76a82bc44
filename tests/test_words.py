"""Shipped text uses the field's words: identifiers, strings, docstrings, comments, templates, docs and presets.

    python tests/test_words.py gendistill/methods README.md     # prints what is found in some files

The words that are held here have a usual one beside them. Where such a word is the right one, it stands in `RIGHT`.
"""

import io
import re
import subprocess
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SHIPPED = ("gendistill", "samplers", "schedulers", "metrics", "scripts", "benchmarks", "configs", "docs", "examples")
SHIPPED = (*SHIPPED, "assets", "README.md", "CHANGELOG.md", "CONTRIBUTING.md")

# Parts of identifiers (`saved_share` has two), and what to call the thing instead.
IN_NAMES = {
    "picture pictures": "image",
    "draw draws drawn drew drawing drawings": "sample, generate; plot",
    "paint paints painted painting painter painters": "generate, decode, predict_x0",
    "ways": "trajectories",
    "say says said": "prediction, output",
    "told tell tells telling": "reported, described",
    "asked": "requested",
    "whole": "full, gathered; not pruned",
    "aside": "temporary",
    "beside": "extra, auxiliary, other",
    "dialect dialects speaking": "prediction_type",
    "lineage": "provenance",
    "judge judges judged judging judgement look looks": "evaluator, evaluate, extract",
    "share shares": "fraction, ratio, probability",
    "most least": "max, min",
    "opinion opinions fooled fooling": "logits",
    "player players pupil pupils guide guides twin partner": "pair, student, targets, peer",
    "imitation imitated imitate": "distillation",
    "complaint complaints heed heeds": "stop reason",
    "given": "a noun: value, arguments, requested",
    "halved slim remembered": "pruned; cached",
    "stray strays strayed": "error, deviation",
    "alike": "similar",
    "ours theirs": "a noun: student_features, teacher_x0",
    "harmless hostile": "verified, allow-listed; malicious",
}
NAMES = {word: instead for words, instead in IN_NAMES.items() for word in words.split()}
# In any text, as regular expressions.
IN_TEXT = {
    r"pictures?": "image",
    r"draw(n|s|ing|ings)?|drew": "sample, generate; plot",
    r"paint(s|ed|ing|er|ers)?": "generate, decode",
    r"ways": "trajectories; methods",
    r"says?|said": "predicts, outputs, states",
    r"told|tells?": "reported, described",
    r"asked|asks?( for)?": "requested, requires",
    r"aside|beside": "temporary; next to, in addition to, compared with",
    r"dialects?|speaks?|speaking": "prediction type",
    r"lineage|made by": "provenance",
    r"judge[sd]?|judging|look(s|ed|ing)?(?! ?-?up|-ahead| ahead)": "evaluator, evaluate, extract, see",
    r"(a|the|its|their|as|what|which|no|this|that|equal|small|large) shares?(?= (of|in)\b|[,.;:)'\"]|$)|shares? of": "fraction",
    r"opinions?|fooled": "logits",
    r"twin|partners?|pupils?": "peer, student",
    r"imitat\w+": "distill, distillation",
    r"heeds?|complaints?": "stop reason",
    r"slim(med|mer)?|remember(s|ed)?": "pruned; cached",
    r"stray(s|ed|ing)?": "deviate, error",
    r"alike": "similar, equal",
    r"text-aside|in-turn|by-layer": "text encoder offload, model offload, sequential offload",
    r"kept whole|keeps? whole": "not pruned",
    r"take care": "warning",
    r"ours|theirs": "a noun: gendistill's, this project's, the teacher's",
    r"harmless|hostile": "verified, allow-listed; malicious",
    r"dies|died|goes on|went on|going on|go on": "terminates; resumes",
    r"com(es?|ing) to by (itself|themselves)|who(m|se)? (else )?learns?": "few-step rollout; the network that",
}
TEXT = re.compile("|".join(rf"(?P<w{n}>(?<![\w-])(?:{words})(?![\w-]))" for n, words in enumerate(IN_TEXT)), re.IGNORECASE)
INSTEAD = list(IN_TEXT.values())
ERROR = re.compile(r"[:;,)}] takes\b|\b(which|it) takes (?!a while)")

# Where one of these words is the right one: names of other libraries and of files, and former names that are still read.
RIGHT = {
    "ImageDraw",
    "draw_without_rendering",
    "most_common",
}
RIGHT_LINES = re.compile(
    r"formerly|former = \{|IMAGE_COLUMNS = |`align.own_share|`progressive.dialect_steps|"
    r"\"(start_share|own_share|partner|partner_weight|dialect_steps|seconds_per_picture)\"|"
    r"drawstyle|draw\.(text|rectangle|line)|words: allowed"
)


def parts_of(name: str) -> list[str]:
    return [part.lower() for part in re.findall(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])", name)]


def found_in(path: Path) -> Iterator[tuple[int, str, str]]:
    """(line, word, what to write instead) of one file."""
    text = path.read_text(encoding="utf-8")
    lines = text.splitlines()
    plain_pieces = ((number, "text", line) for number, line in enumerate(lines, 1))
    pieces = python_pieces(text) if path.suffix == ".py" else plain_pieces
    for number, kind, piece in pieces:
        for offset, line in enumerate(piece.splitlines() or [""]):
            whole_line = lines[number + offset - 1]
            if RIGHT_LINES.search(whole_line):
                continue
            if kind == "name":
                if line not in RIGHT:
                    if line == "of":
                        yield number, line, "a noun"
                    yield from ((number, line, NAMES[part]) for part in parts_of(line) if part in NAMES)
                continue
            for match in TEXT.finditer(line):
                yield number + offset, match[0], INSTEAD[next(n for n in range(len(INSTEAD)) if match[f"w{n}"])]
            if kind == "string" and (match := ERROR.search(line)):
                yield number + offset, match[0], "expects, must be one of"


def python_pieces(text: str) -> Iterator[tuple[int, str, str]]:
    """Lines, kinds and texts of a Python file's names, strings and comments."""
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.NAME:
            yield token.start[0], "name", token.string
        elif token.type == tokenize.STRING:
            is_docstring = token.string.lstrip("rRfF").startswith('"""')
            # names between the braces of an f-string are names
            if re.match(r"(?i)r?f", token.string):
                for expression in re.findall(r"\{([^{}]*)\}", token.string):
                    for name in re.findall(r"(?<![\w'\"])[A-Za-z_]\w*", expression.split("!")[0].split(":")[0]):
                        yield token.start[0], "name", name
            plain = re.sub(r"\{[^{}\n]*\}", "}", token.string)
            yield token.start[0], "docstring" if is_docstring else "string", plain
        elif token.type == tokenize.COMMENT:
            yield token.start[0], "comment", token.string


def shipped_files(roots: list[str]) -> list[Path]:
    command = ["git", "ls-files", "--", *roots]
    tracked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.split("\n")
    wanted = (".py", ".md", ".yaml", ".yml", ".jinja")
    return [ROOT / name for name in tracked if name.endswith(wanted) and (ROOT / name).is_file()]


def report(roots: list[str]) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}:{line}: {word} -> {instead}"
        for path in shipped_files(roots)
        for line, word, instead in found_in(path)
    ]


def test_shipped_text_uses_the_words_of_the_field():
    offences = report(list(SHIPPED))
    assert not offences, f"{len(offences)} words have a usual one:\n" + "\n".join(offences[:200])


def test_a_private_word_is_found_in_names_strings_comments_and_errors(tmp_path):
    file = tmp_path / "sample.py"
    file.write_text(
        'def drawn_pictures(of):  # what the teacher paints\n    """What it says."""\n'
        "    raise ValueError(f\"steps {of}: 3; takes whole numbers\")\n    image = 'an image of a share'\n"
    )
    assert [(line, word) for line, word, _ in found_in(file)] == [
        (1, "drawn_pictures"),
        (1, "drawn_pictures"),
        (1, "of"),
        (1, "paints"),
        (2, "says"),
        (3, "of"),
        (3, "; takes"),
        (4, "a share"),
    ]


if __name__ == "__main__":
    print("\n".join(report(sys.argv[1:] or list(SHIPPED))))
