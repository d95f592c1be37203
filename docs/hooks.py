"""What mkdocs does with a page before it reads it: fills in parts of README and of code, and turns links to README's.

A line `<!-- README: Guidance -->` stands for that section of README, without its heading; `<!-- README -->` for all
that is before the first section; `<!-- CODE: path NAME -->` for what a module assigns to a name. So nothing has to be
said twice, and README can be read without the site.
"""

import ast
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]


def on_page_markdown(markdown: str, **_: Any) -> str:
    """The page with all of it in; files outside docs/, which no site has, are named and not linked."""
    text = re.sub(r"^<!-- README(?:: (.+))? -->$", lambda found: section(found[1]), markdown, flags=re.MULTILINE)
    text = re.sub(r"^<!-- CODE: (\S+) (\S+) -->$", lambda found: assigned(*found.groups()), text, flags=re.MULTILINE)
    return re.sub(r"\[([^]]+)\]\(\.\./[^)]+\)", r"\1", text)


def section(heading: str | None) -> str:
    """A section of README, as a page has it: without the lines that send a reader on to a page."""
    first, *sections = re.split(r"^## ", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = {title: text for title, _, text in (section.partition("\n") for section in sections)}
    if heading is not None and heading not in found:
        raise ValueError(f"README.md has no section {heading!r}, which a page in docs/ asks for.")
    text = first.partition("\n")[2] if heading is None else found[heading]
    text = re.sub(r"^\[More on .*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r'<img src="docs/([^"]+)" width="(\d+)" alt="([^"]+)">', r"![\3](\1){ width=\2 }", text)
    return text.replace("](docs/", "](").strip()


def assigned(path: str, name: str) -> str:
    """The lines of code that give a name its value, comments and all."""
    code = (ROOT / path).read_text(encoding="utf-8")
    for node in ast.parse(code).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == name:
            lines = code.splitlines()[node.lineno - 1 : node.end_lineno]
            return "\n".join(["```python", *lines, "```"])
    raise ValueError(f"{path} has no {name}, which a page in docs/ asks for.")
