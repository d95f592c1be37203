"""The imports of the package follow the picture in docs/architecture.md, and tests share code through helpers alone."""

import ast
import re
from pathlib import Path

from helpers.runs import ROOT

PACKAGE = ROOT / "diffusion_distillation"
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def rooms_from_top_to_bottom():
    """The rooms in the picture, floor by floor and from left to right."""
    _, picture, *_ = PAGE.split("```")
    columns = [line[14:52].split() for line in picture.splitlines()[3:] if "↓" not in line]
    return [name.rstrip("/") for floor in columns for name in floor]


def rooms_of_the_package():
    paths = [path for path in PACKAGE.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()]
    return {path.stem for path in paths} - {"__init__", "__main__"}


def imported_rooms(path):
    """The rooms from which a module imports, at its top or inside functions."""
    folder = list(path.relative_to(PACKAGE).parent.parts)
    rooms = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = folder[: len(folder) - node.level + 1]
            target = [*base, *(node.module or "").split(".")]
            rooms |= {target[0]} if target[0] else {alias.name for alias in node.names}
    return rooms


def test_the_picture_shows_every_room():
    assert set(rooms_from_top_to_bottom()) - {"scripts"} == rooms_of_the_package()


def test_rooms_import_only_from_below_and_from_the_right():
    order = {room: number for number, room in enumerate(rooms_from_top_to_bottom())}
    for path in PACKAGE.rglob("*.py"):
        room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if room not in ("__init__", "__main__"):
            upward = [other for other in imported_rooms(path) - {room} if order[other] < order[room]]
            assert not upward, f"{path.relative_to(ROOT)} imports from {upward}, which is above {room}"


def imported_modules(path):
    """The full names of all modules and members that a file imports."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module or ''}.{alias.name}" for alias in node.names)


def test_no_test_imports_another_test():
    for path in (ROOT / "tests").rglob("*.py"):
        for name in imported_modules(path):
            tests = [part for part in name.split(".") if part.startswith("test_") or part == "conftest"]
            assert not tests, f"{path.relative_to(ROOT)} imports {name}. Move what they share to tests/helpers/."


def test_the_registries_that_the_page_names_exist():
    for name, path in re.findall(r"`([A-Z]+)`, `([\w/]+\.py)`", PAGE):
        assert re.search(rf"^{name}\b", Path(PACKAGE / path).read_text(), re.MULTILINE), name
