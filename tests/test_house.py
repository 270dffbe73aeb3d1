"""The plan of the house: imports run downhill, in no circle, and the library imports nothing of the laboratory."""

from __future__ import annotations

import ast
import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SRC = ROOT / "src"
SCRIPTS = sorted([*ROOT.glob("bench/*.py"), *ROOT.glob("tools/**/*.py")])
#: The floors, lowest first; files at the library's root that are not named here are the ground.
FLOORS = (
    ("prompts",), ("model", "memory"), ("data",), ("generation", "training", "minigpt4", "vllm"),
    ("curation", "evaluation"), ("app", "terminal"), ("pocket",), ("cli", "__main__"),
)  # fmt: skip
FILES = {".".join(path.relative_to(SRC).with_suffix("").parts): path for path in SRC.rglob("*.py")}


def floor(module: str) -> int:
    room = module.removeprefix("minigpt4.").split(".")[0]
    return next((number for number, rooms in enumerate(FLOORS) if room in rooms), -1)


def imports(module: str) -> set[str]:
    """The files that `module` imports, inside functions too, but not those that only its annotations name."""
    tree = ast.parse(FILES[module].read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {str(node.module)} | {f"{node.module}.{alias.name}" for alias in node.names}
    return found & FILES.keys()


def test_no_import_runs_uphill() -> None:
    uphill = {f"{a} -> {b}" for a in FILES if not a.endswith("__init__") for b in imports(a) if floor(b) > floor(a)}
    assert not uphill


def test_the_command_line_imports_the_laboratory_inside_of_functions() -> None:
    top = ast.parse(FILES["minigpt4.cli"].read_text(encoding="utf-8")).body
    lines = [ast.unparse(node) for node in top if isinstance(node, (ast.Import, ast.ImportFrom))]
    assert lines
    assert not [line for line in lines if "pocket" in line]


def test_no_circle_of_files() -> None:
    below = {module: imports(module) for module in FILES}
    while free := [module for module, wanted in below.items() if not wanted & below.keys()]:
        for module in free:
            del below[module]
    assert not below, f"a circle, and the files above it: {sorted(below)}"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_benches_and_tools_name_what_there_is(script: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(script.parent)
    spec = importlib.util.spec_from_file_location(script.stem, script)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, script.stem, module)  # where dataclasses look for it
    spec.loader.exec_module(module)
    assert module.__doc__, "a script says what it measures or makes"
