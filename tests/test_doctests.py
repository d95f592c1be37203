"""The examples in docstrings run and print what they show."""

import ast
import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest

import diffusion_distillation

MODULES = sorted(
    module.name for module in pkgutil.walk_packages(diffusion_distillation.__path__, "diffusion_distillation.")
)


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__main__")])
def test_examples_print_what_they_show(name):
    module = importlib.import_module(name)
    docstrings = [docstring for docstring in _docstrings(Path(module.__file__)) if ">>>" in docstring]
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for docstring in docstrings:
        runner.run(doctest.DocTestParser().get_doctest(docstring, vars(module).copy(), name, module.__file__, 0))
    assert runner.summarize(verbose=False).failed == 0


@pytest.mark.parametrize("name", ["schedules", "diffusion", "losses", "sampling", "distillation"])
def test_every_public_function_of_the_mathematics_has_an_example(name):
    """As docs/architecture.md says."""
    module = importlib.import_module(f"diffusion_distillation.{name}")
    body = ast.parse(Path(module.__file__).read_text()).body
    public = [node for node in body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")]
    assert [node.name for node in public if ">>>" not in (ast.get_docstring(node) or "")] == []


def _docstrings(path):
    """The docstrings in a file, including those of functions that a decorator replaces."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, documented)]
    return [ast.get_docstring(node) or "" for node in nodes]
