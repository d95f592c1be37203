"""A mkdocs hook: links to files outside docs/, which a code host shows and the site lacks, become plain text."""

import re
from typing import Any


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Return a page without the links that leave docs/."""
    depth = page.file.src_uri.count("/")
    return re.sub(rf"\[([^]]+)\]\((?:\.\./){{{depth + 1},}}[^)]*\)", r"\1", markdown)
