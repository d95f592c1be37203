"""Write the tables of docs/reference/ that follow from the code: every config field, and every module.

python docs/tables.py

A page has such a table between the lines `<!-- begin NAME -->` and `<!-- end NAME -->`. The meaning of a field is the
comment on its line in `config.py`, or the argument's description in the docstring of the function that receives it.
`tests/test_readme.py` fails if a page is out of date.
"""

import ast
import functools
import inspect
import io
import re
import tokenize
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from diffusion_distillation import config
from diffusion_distillation.data.datasets import DATASETS
from diffusion_distillation.fields import Free, attributes_of, list_fields
from diffusion_distillation.methods import METHODS
from diffusion_distillation.methods.base import TRAINING_TIMES
from diffusion_distillation.networks.model import NETWORKS, SET_BY_CONFIG
from diffusion_distillation.schedules import SCHEDULES

ROOT = Path(__file__).parents[1]
REFERENCE = ROOT / "docs" / "reference"
PACKAGE = ROOT / "diffusion_distillation"
PIPE = "\\|"
BLANK = "\n\n"
HEADER = "| field | type | default | meaning |\n|---|---|---|---|\n"


def field_tables() -> str:
    """The tables of all fields, section by section."""
    parts = [section(name, config.FIELDS, comments().get(name, "")) for name in ("", *_sections(config.FIELDS))]
    parts.append(section("distillation", {"distillation": config.DISTILLATION}, "Only ladders have this section."))
    parts += [
        functions("model.args", "`model.name`", {n: (c, attributes_of(c, SET_BY_CONFIG)) for n, c in NETWORKS.items()}),
        functions("dataset.args", "`dataset.name`", DATASETS),
        functions("model.train_logsnr_schedule", "its `name`; `model.eval_logsnr_schedule` has the same", SCHEDULES),
        functions("model.train_times", "its `name`", TRAINING_TIMES),
        functions("distillation.args", "`distillation.method`", {n: entry.make for n, entry in METHODS.items()}),
    ]
    return "\n".join(parts)


def section(name: str, table: Mapping[str, Any], note: str) -> str:
    """The table of a section of fields; with the name '', of the fields outside of sections."""
    fields = table[name] if name else {n: spec for n, spec in table.items() if not isinstance(spec, dict)}
    prefix = f"{name}." if name else ""
    meanings = comments()
    rows = ""
    for field, default, allowed in _leaves(fields, prefix):
        rows += row(field, allowed, default, meanings.get(field, ""))
    return f"## {name or 'Top level'}\n\n{note and note + BLANK}{HEADER}{rows}"


def functions(title: str, chosen_by: str, known: Mapping[str, Any]) -> str:
    """The tables of the fields that depend on a name, one per function that receives them."""
    text = f"## {title}\n\nThe fields depend on {chosen_by}.\n"
    for name, function in known.items():
        function, table = function if isinstance(function, tuple) else (function, None)
        described = descriptions(function)
        rows = "".join(
            row(f"{title}.{field}", allowed, default, described.get(field, ""))
            for field, default, allowed in (list_fields(table, {}) if table else _arguments(function))
        )
        text += f"\n### {title}: {name}\n\n" + (HEADER + rows if rows else "No fields.\n")
    return text


def row(field: str, allowed: str, default: str, meaning: str) -> str:
    """A row of a table."""
    kind = allowed.removesuffix(", must be set")
    default = "required" if allowed.endswith("must be set") else f"`{default}`" if default else "`''`"
    cells = [f"`{field}`", kind or "any", default, meaning]
    return f"| {' | '.join(' '.join(cell.split()).replace('|', PIPE) for cell in cells)} |\n"


def module_table() -> str:
    """One line per module: its first sentence, and its source."""
    rows = "| module | what it is for |\n|---|---|\n"
    for path in sorted(PACKAGE.rglob("*.py")):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix("__init__").removesuffix(".")
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        if name and docstring:
            summary = " ".join(docstring.partition(BLANK)[0].split())
            rows += f"| [`{name}`](../../{path.relative_to(ROOT)}) | {summary} |\n"
    return rows


@functools.cache
def comments() -> dict[str, str]:
    """The comment of each field in `config.py`, at the end of its line or on the lines above, by its dotted name."""
    source = inspect.getsource(config)
    found = {}
    prefixes = {"FIELDS": "", "DISTILLATION": "distillation."}
    for statement in ast.parse(source).body:
        name = ast.unparse(statement.targets[0]) if isinstance(statement, ast.Assign) else ""
        if name in prefixes:
            found |= dict(_comments_of(statement.value, source.splitlines(), prefixes[name]))
    return found


def _comments_of(table: ast.Dict, lines: list[str], prefix: str) -> Iterator[tuple[str, str]]:
    for key, value in zip(table.keys, table.values, strict=True):
        name = prefix + key.value
        comment, number, above = _comment(lines[key.lineno - 1]), key.lineno - 1, []
        while lines[number - 1].strip().startswith("#"):
            number -= 1
            above.insert(0, _comment(lines[number]))
        yield name, comment or " ".join(above)
        if isinstance(value, ast.Dict):
            yield from _comments_of(value, lines, name + ".")


def _comment(line: str) -> str:
    """The comment of a line of code."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(line.strip()).readline))
    except tokenize.TokenError:  # the line opens a bracket
        return line.partition("  # ")[2]
    return "".join(token.string.lstrip("# ") for token in tokens if token.type == tokenize.COMMENT)


def descriptions(function: Callable) -> dict[str, str]:
    """The description of each argument or attribute in a docstring: its indented lines that start with a name."""
    entry = r"^  (\w+): (.*\n?(?:^    .*\n?)*)"
    return dict(re.findall(entry, inspect.getdoc(function) or "", re.MULTILINE))


def _sections(fields: Mapping[str, Any]) -> list[str]:
    return [name for name, spec in fields.items() if isinstance(spec, dict)]


def _leaves(fields: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str, str]]:
    """The fields of a section, with the sections that depend on a name as one field each."""
    for name, spec in fields.items():
        if name == "args" or isinstance(spec, Free):
            yield f"{prefix}{name}", str(dict(spec)) if isinstance(spec, Free) else "{}", "section"
        elif isinstance(spec, dict):
            yield from _leaves(spec, f"{prefix}{name}.")
        else:
            yield from list_fields({name: spec}, {}, prefix)


def _arguments(function: Callable) -> Iterator[tuple[str, str, str]]:
    """The arguments of a function that a config sets: all but the first ones of a method or a distribution."""
    for name, parameter in inspect.signature(function).parameters.items():
        if name in ("config", "schedule", "keys") or parameter.kind is parameter.VAR_KEYWORD:
            continue
        hint = parameter.annotation
        kind = hint if isinstance(hint, str) else getattr(hint, "__name__", "") if isinstance(hint, type) else str(hint)
        kind = re.sub(r"[\w.]+\.", "", kind).replace(" | ", " or ")
        kind = re.sub(r"^Literal\[(.*)\]$", lambda match: f"one of {match[1].replace(chr(39), '')}", kind)
        missing = parameter.default is parameter.empty
        yield name, "" if missing else str(parameter.default), f"{kind}, must be set" if missing else kind


def update(page: Path, name: str, text: str) -> str:
    """The page with the text between its two marks."""
    begin, end = f"<!-- begin {name} -->\n", f"<!-- end {name} -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    return f"{before}{begin}\n{text}\n{end}{rest.partition(end)[2]}"


def pages() -> dict[Path, str]:
    """Every page with a generated table, as it should be."""
    fields, index = REFERENCE / "fields.md", REFERENCE / "index.md"
    return {fields: update(fields, "fields", field_tables()), index: update(index, "modules", module_table())}


if __name__ == "__main__":
    for path, text in pages().items():
        path.write_text(text, encoding="utf-8")
        print(f"Saved {path.relative_to(ROOT)}.")
