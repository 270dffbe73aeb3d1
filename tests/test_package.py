"""What a person meets first: the import, the names, the help; all of it before torch is read."""

from __future__ import annotations

import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import minigpt4
from minigpt4.former_names import FORMER_NAMES

BUDGET = 0.3  # seconds of a core, for `import minigpt4` and for `minigpt4 --help`
SHOW_HELP = "import sys; sys.argv = ['minigpt4', '--help']; from minigpt4.cli import main; main()"


@pytest.mark.parametrize("code", ["import minigpt4", SHOW_HELP], ids=["import", "help"])
def test_it_starts_at_once(code: str) -> None:
    def spent() -> float:
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    def seconds(code: str = code) -> float:  # not by the clock, for other tests run beside this one
        before = spent()
        subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
        return spent() - before

    seconds()  # the first run may compile byte code
    bare = min(seconds("pass") for _ in range(5))
    assert min(seconds() for _ in range(5)) < max(BUDGET, 12 * bare), "on a slow machine by what Python alone takes"


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["demo"],
        ["train"],
        ["chat"],
        ["pocket", "draw"],
        ["pocket", "data"],
        ["curate", "refine"],
        ["pocket", "build", "vision"],
    ],
    ids=" ".join,
)
def test_help_reads_nothing_heavy(command: list[str]) -> None:
    code = (
        "import sys\nfrom minigpt4.cli import app\n"
        f"try: app({[*command, '--help']!r})\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'PIL', 'numpy'} & set(sys.modules)))"
    )
    shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert shown.splitlines()[-1] == "[]"
    assert "Usage:" in shown


def test_public_names() -> None:
    from minigpt4.generation.chat import Chat
    from minigpt4.minigpt4 import MiniGPT4

    assert minigpt4.MiniGPT4 is MiniGPT4
    assert minigpt4.Chat is Chat
    assert re.fullmatch(r"[0-9]+\.[0-9]+\.[0-9]+", minigpt4.__version__)
    assert dir(minigpt4) == sorted(minigpt4.__all__)
    with pytest.raises(AttributeError, match="'minigpt4' has no attribute 'MiniGPT5'"):
        _ = minigpt4.MiniGPT5


def test_modules_are_imported_by_their_former_names_too() -> None:
    code = f"import importlib\nfor name in {[*FORMER_NAMES]}: print(importlib.import_module(name).__name__)"
    run = subprocess.run([sys.executable, "-W", "always", "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.split() == [*FORMER_NAMES.values()]
    for former, name in FORMER_NAMES.items():
        assert f"DeprecationWarning: {former} is called {name} now" in run.stderr


def test_every_data_file_is_in_the_package_that_is_built() -> None:
    """A page, template or table that `package-data` forgets is there in a clone, and missing after `pip install`."""
    tomllib = pytest.importorskip("tomllib")  # new in Python 3.11
    project = Path(__file__).parents[1]
    source, settings = project / "src", tomllib.loads((project / "pyproject.toml").read_text())
    for name, patterns in settings["tool"]["setuptools"]["package-data"].items():
        built = {path for pattern in patterns for path in (source / name).glob(pattern)}
        there = (path for path in (source / name).rglob("*") if path.is_file() and "__pycache__" not in path.parts)
        assert [path for path in there if path.suffix != ".py" and path not in built] == []


def test_what_is_installed_is_ours() -> None:
    """The name `minigpt4` on the index is somebody else's, so nothing says to install it."""
    root = Path(__file__).parents[1]
    assert '\nname = "minigpt4-vlm"' in (root / "pyproject.toml").read_text()
    texts = [*root.glob("*.*"), *root.glob("docs/**/*.md"), *root.glob("src/**/*.py")]
    texts = [file for file in texts if file.is_file()]
    assert [file for file in texts if re.search(r"minigpt4\[|install '?minigpt4['\s]", file.read_text("utf-8"))] == []
