"""mkdocs hooks: insert sections of README and code into pages, and adapt README's links.

A line `<!-- README: Guidance -->` is replaced by that section of README without its heading, `<!-- README -->` by
everything before the first section, and `<!-- CODE: path NAME -->` by the assignment to NAME in a module. So nothing is
written twice, and README can be read without the site.
"""

import ast
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return a page with its insertions. Links to files outside docs/, which the site lacks, become plain text."""
    text = re.sub(r"^<!-- README(?:: (.+))? -->$", lambda match: section(match[1]), markdown, flags=re.MULTILINE)
    text = re.sub(r"^<!-- CODE: (\S+) (\S+) -->$", lambda match: assignment(*match.groups()), text, flags=re.MULTILINE)
    return re.sub(r"\[([^]]+)\]\(\.\./[^)]+\)", r"\1", text)


def section(heading: str | None) -> str:
    """Return a section of README for a page: without the lines that link to that page.

    Args:
      heading: the section's heading; None for everything before the first section.
    """
    first, *sections = re.split(r"^## ", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    by_title = {title: text for title, _, text in (part.partition("\n") for part in sections)}
    if heading is not None and heading not in by_title:
        raise ValueError(f"README.md has no section {heading!r}, which a page in docs/ inserts.")
    text = first.partition("\n")[2] if heading is None else by_title[heading]
    text = re.sub(r"^\[More on .*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r'<img src="docs/([^"]+)" width="(\d+)" alt="([^"]+)">', r"![\3](\1){ width=\2 }", text)
    return text.replace("](docs/", "](").strip()


def assignment(path: str, name: str) -> str:
    """Return the lines of a module that assign to a name, as a code block."""
    code = (ROOT / path).read_text(encoding="utf-8")
    for node in ast.parse(code).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            lines = code.splitlines()[node.lineno - 1 : node.end_lineno]
            return "\n".join(["```python", *lines, "```"])
    raise ValueError(f"{path} has no assignment to {name}, which a page in docs/ inserts.")
