"""The documents say what is there: commands, options, recipe keys, files, links, names of tests; a page stays short.

`python tests/test_docs.py` writes the table of keys in docs/recipe.md.
"""

from __future__ import annotations

import ast
import functools
import importlib
import json
import re
import shlex
from pathlib import Path
from typing import Any

import click
import pytest
import typer
import yaml

from minigpt4.cli import app
from minigpt4.training.recipe import Recipe

ROOT = Path(__file__).parent.parent
RECIPE = ROOT / "docs" / "recipe.md"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
NOTES = sorted((ROOT / "docs" / "notes").glob("*.md"))
LIMIT = 150
FILES = [path for room in ("src", "tests", "bench", "tools") for path in (ROOT / room).rglob("*.py")]
ABOUT_RECIPES = ("recipe.md", "training.md", "finetune.md", "speed.md")

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
every_page = pytest.mark.parametrize("page", PAGES + NOTES, ids=lambda page: page.relative_to(ROOT).as_posix())


def fences(page: Path) -> list[tuple[str, str]]:
    """Language and content of each fenced block."""
    return re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def inline(page: Path) -> list[str]:
    """All that stands between backticks, on one line each."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(page))]


def anchors(page: Path) -> set[str]:
    """The places in a page that a link can name: its headings as GitHub spells them, and its named anchors."""
    text = prose(page)
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r'<a id="([^"]+)"', text))


def words(line: str) -> list[str] | None:
    """The arguments of `minigpt4` in a line of a shell, None if it does not call it."""
    try:
        split = shlex.split(line, comments=True)
    except ValueError:
        split = line.split()
    start = next((i for i, word in enumerate(split) if word.split("/")[-1] == "minigpt4"), None)
    if start is None or (start and split[start - 1] not in ("-m", "&&", "|")):
        return None
    rest = split[start + 1 :]
    end = next((i for i, word in enumerate(rest) if word in ("|", "&", "&&", ">", ";")), len(rest))
    return rest[:end]


def shell_lines(page: Path) -> list[str]:
    blocks = [block for language, block in fences(page) if language in ("", "bash", "yaml")]
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    return [line.strip().removeprefix("# ").removeprefix("Then:").strip() for line in lines]


@functools.cache
def tree() -> Any:
    return typer.main.get_command(app)


def check_command(arguments: list[str], whole: bool) -> None:
    """Parse `arguments` as the command line does; only names of commands and options if they are not `whole`."""
    command = tree()
    context = click.Context(command, info_name="minigpt4")
    rest = list(arguments)
    while rest and hasattr(command, "commands") and rest[0].islower() and not rest[0].startswith("-"):
        name = rest.pop(0)
        assert name in command.commands, f"there is no command {name!r} in minigpt4 {' '.join(arguments)}"
        command = command.commands[name]
        assert not command.hidden, f"minigpt4 {' '.join(arguments)}: {name} is a former name"
    if not hasattr(command, "commands"):
        if whole and "..." not in rest:
            command.make_context(command.name, list(rest), parent=context)
        else:
            found = [word for word in rest if word != "..."]
            for option in [word.partition("=")[0] for word in found if word.startswith("--") and word != "--help"]:
                assert any(option in [*p.opts, *p.secondary_opts] for p in command.params), f"{arguments}: {option}"
    if arguments[:1] == ["train"] or arguments[:2] == ["recipe", "show"]:
        keys = [word.partition("=")[0] for word in rest if "=" in word and not word.startswith("--")]
        assert set(keys) <= Recipe.model_fields.keys(), arguments


def commands() -> list[Any]:
    """Every command of the tree that is no group."""

    def walk(command: Any) -> list[Any]:
        inner = getattr(command, "commands", {}).values()
        return [leaf for each in inner for leaf in walk(each)] or [command]

    return walk(tree())


def key_table() -> str:
    """Every key of a recipe with its description and default, as docs/recipe.md shows them."""

    def default(entry: Any) -> str:
        if entry.is_required():
            return "**required**"
        if entry.default in (None, ()):
            return ""
        value = str(entry.default) if isinstance(entry.default, Path) else entry.default
        return f"`{value if isinstance(value, str) else json.dumps(value)}`"

    rows = [f"| `{key}` | {entry.description} | {default(entry)} |" for key, entry in Recipe.model_fields.items()]
    return "\n".join(["| key | what it says | default |", "|---|---|---|", *rows]) + "\n"


@each_page
def test_a_page_is_short(page: Path) -> None:
    assert len(page.read_text(encoding="utf-8").splitlines()) <= LIMIT


@every_page
def test_commands_are_those_of_the_command_line(page: Path) -> None:
    for line in shell_lines(page):
        if (arguments := words(line)) is not None:
            check_command(arguments, whole=True)
    for code in inline(page):
        if (arguments := words(code)) is not None:
            check_command(arguments, whole=False)


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "serving.md"], ids=lambda page: page.name)
def test_options_named_alone_exist(page: Path) -> None:
    """On every page but serving.md, where they are vLLM's."""
    known = {option for command in commands() for p in command.params for option in [*p.opts, *p.secondary_opts]}
    for script in [*(ROOT / "bench").glob("*.py"), *(ROOT / "tools").rglob("*.py")]:
        known |= set(re.findall(r'"(--[a-z-]+)"', script.read_text(encoding="utf-8")))
    named = {code.split()[0] for code in inline(page) if code.startswith("--")} - {"--machine_rank", "--num_machines"}
    assert named <= known


def test_the_table_of_keys_is_that_of_the_recipe() -> None:
    page = RECIPE.read_text(encoding="utf-8")
    assert key_table() in page, "run python tests/test_docs.py"


@pytest.mark.parametrize("page", [p for p in PAGES + NOTES if p.name in ABOUT_RECIPES], ids=lambda page: page.name)
def test_recipe_keys_exist(page: Path) -> None:
    named = {code.partition(":")[0] for code in inline(page) if re.match(r"[a-z_]+: \S", code)}
    for language, block in fences(page):
        named |= set(yaml.safe_load(block)) if language == "yaml" else set()
    assert named <= Recipe.model_fields.keys()


@every_page
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@every_page
def test_files_and_tests_that_are_named_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    text = re.sub(r"`git\s[^`]*`", "", text)  # what lies in the history
    for path in re.findall(r"(?<![\w./-])(?:src|docs|tests|bench|tools|recipes)/[\w./-]*\w", text):
        assert (ROOT / path).exists() or list(ROOT.glob(f"{path}*")), path
    rooms = {path.parent.name for path in FILES}
    ends = [f"/{path.relative_to(ROOT).as_posix()}" for path in FILES]
    for path in re.findall(r"(?<![\w./-])((?:\w+/)+\w+\.py)\b", text):
        if path.split("/")[0] in rooms:
            assert any(end.endswith(f"/{path}") for end in ends), path
    tests = "\n".join(path.read_text(encoding="utf-8") for path in FILES if path.name.startswith("test_"))
    for name in re.findall(r"(?<![\w/])test_\w+(?!\w*\.py)", text):
        assert f"def {name}" in tests, name
    for target in re.findall(r"(?:^|`)make ([a-z-]+)", text, re.MULTILINE):
        assert f"\n{target}: " in (ROOT / "Makefile").read_text(encoding="utf-8"), target


@every_page
def test_python_can_be_run(page: Path) -> None:
    for language, block in fences(page):
        if language != "python":
            continue
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in ("minigpt4", "pocket"):
                module = importlib.import_module(str(node.module))
                assert all(hasattr(module, alias.name) for alias in node.names), ast.unparse(node)


def test_who_follows_the_readme_and_then_another_page_meets_no_directory_that_exists() -> None:
    pages = ("README.md", "docs/quickstart.md", "docs/finetune.md")
    calls = [arguments for page in pages for line in shell_lines(ROOT / page) if (arguments := words(line))]
    made = [call[call.index("--out") + 1] for call in calls if "--out" in call]
    assert len(made) > 3
    assert len({*made}) == len(made), made


def test_documents_call_the_program_in_one_way() -> None:
    """From the environment that README says to activate: not as .venv/bin/minigpt4, nor python -m."""
    lines = [(page.name, line) for page in PAGES for line in shell_lines(page) if words(line) is not None]
    assert [at for at in lines if ".venv/bin/minigpt4" in at[1] or "python -m minigpt4" in at[1]] == []
    assert ". .venv/bin/activate" in (ROOT / "README.md").read_text(encoding="utf-8")


def test_images_that_the_readme_names_exist() -> None:
    """Its commands run as written in a fresh clone."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    named = re.findall(r"--images (\S+)", text) + re.findall(r"[\w./-]+\.(?:jpg|png)", text)
    assert len(named) > 10
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_the_readme_shows_the_two_commands_that_matter() -> None:
    lines = shell_lines(ROOT / "README.md")
    assert any(line.startswith("make demo") for line in lines)
    assert any(line.startswith("make test") for line in lines)


if __name__ == "__main__":
    before, _, rest = RECIPE.read_text(encoding="utf-8").partition("| key | what it says")
    after = rest[rest.index("\n\n") + 1 :]
    RECIPE.write_text(before + key_table() + after, encoding="utf-8")
