"""The container's file, as far as it can be tested without a container: its commands, its files, what it starts."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from test_docs import check_command, commands

ROOT = Path(__file__).parents[1]
LINES = (ROOT / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", " ").splitlines()


def said(instruction: str) -> list[str]:
    """What stands behind an instruction, each time that it comes."""
    return [line.partition(" ")[2].strip() for line in LINES if line.startswith(f"{instruction} ")]


def test_the_container_installs_as_make_does() -> None:
    """Every environment in CI is made by the Makefile's commands; the container's differ in the extras alone."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    [parts] = re.findall(r"^PHOTO_PARTS := (.*)$", makefile, re.MULTILINE)
    made = [line.strip() for line in makefile.splitlines() if line.startswith("\t$(BIN)/pip install")]
    made = [line.replace("$(BIN)/", "").replace("$(PHOTO_PARTS)", parts) for line in made]
    installs = [line for line in said("RUN") if "install " in line and line.startswith("pip")]
    assert [line.replace("'.[serve,web]'", "-e '.[dev]'") for line in installs] == made


def test_the_files_of_the_container_make_a_package_that_works(tmp_path: Path) -> None:
    """What COPY takes, and .dockerignore lets through, is built and installed in an empty root."""
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [word for line in said("COPY") for word in line.split()[:-1]]
    assert set(copied) == kept
    context = tmp_path / "context"
    context.mkdir()
    for name in copied:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, context / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(source, context / name)
    install = ["install", "-q", "--no-deps", "--no-build-isolation", "--no-index", "--target", tmp_path / "root"]
    subprocess.run([sys.executable, "-m", "pip", *install, context], check=True)
    code = "import minigpt4, pocket; from minigpt4.cli import main; print(minigpt4.__file__); main()"
    run = [sys.executable, "-c", code, "recipe", "list"]
    result = subprocess.run(run, capture_output=True, text=True, env={"PYTHONPATH": str(tmp_path / "root")}, cwd="/")
    assert result.returncode == 0, result.stderr
    assert result.stdout.startswith(str(tmp_path / "root"))
    assert "photo-stage1" in result.stdout
    assert list((tmp_path / "root").glob("minigpt4/weights/photo/*/model.safetensors"))


def test_the_container_starts_the_page_for_a_user_without_rights() -> None:
    [entry], [arguments] = said("ENTRYPOINT"), said("CMD")
    command = [*json.loads(entry), *json.loads(arguments)]
    assert command[:2] == ["minigpt4", "web"]
    check_command(command[1:], whole=True)
    web = next(each for each in commands() if each.name == "web")
    assert said("EXPOSE") == [str(next(p.default for p in web.params if p.name == "port"))]
    user, last = said("USER")[-1], max(i for i, line in enumerate(LINES) if line.startswith("USER "))
    assert user not in ("root", "0")
    assert not any(line.startswith(("RUN", "COPY")) for line in LINES[last:])
    assert set(said("VOLUME")) <= set(said("WORKDIR"))
