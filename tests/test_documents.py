"""JSON and YAML files of somebody else: read within bounds, or refused in one line that names file and line."""

import json
import time
from pathlib import Path

import pytest
import yaml

from minigpt4.curation.filters import load_thresholds
from minigpt4.documents import LARGEST_YAML, parse_yaml, read_document
from minigpt4.errors import UserError
from minigpt4.evaluation.judges import JudgePrompt
from minigpt4.training.recipe import Recipe

LAUGHS = "a: &a [x, x]\n" + "".join(f"{b}: &{b} [*{a}, *{a}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (LAUGHS, ":2: broken YAML (aliases such as *a are not read"),
        ("x: &x {a: 1}\ny:\n  <<: *x\n", ":3: broken YAML (aliases such as *x"),
        ("? *a\n: 1", ":1: broken YAML (aliases"),
        ("a: " + "[" * 5000, "nested more than 32 deep"),
        ("a:\n" + "".join("  " * n + "- \n" for n in range(40)), "nested more than 32 deep"),
        ("{" * 20_000, "nested more than 32 deep"),
        ("a: !!python/object/apply:os.system [id]", ":1: broken YAML (could not determine a constructor"),
        ("\n\na: !!python/name:os.system", ":3: broken YAML"),
        ("a: " + "9" * 5000, ":1: broken YAML (a number of 5000 characters"),
        ("a: 0x" + "f" * 5000, "a number of 5002 characters"),
        ("a: " + ":".join(["59"] * 5000), "characters"),
        ("a: " + ":".join(["59"] * 5000) + ".5", "characters"),
        ("a: 2001-99-99", "broken YAML (month must be"),
        ('a: !!int ""', "broken YAML"),
        ("a: !!int {}", "broken YAML"),
        ("a: !!bool perhaps", "broken YAML"),
        ("a: !!map [1, 2]", "broken YAML"),
        ("? [a]\n: 1\n? [a]\n: 2", "unhashable"),
        ("a: 1\nb: 2\na: 3", ":3: broken YAML (the key 'a' stands there twice)"),
        (r'a: "b\0c"', "a character that no text holds"),
        (r'a: "\uD800"', "a character that no text holds"),
        ("a: \0", "broken YAML"),
        ("x" * (LARGEST_YAML + 1), "has more than"),
    ],
)
def test_yaml_that_is_refused(tmp_path: Path, text: str, expected: str) -> None:
    """In well under the seconds that a few more levels of aliases, digits or brackets would take."""
    path, started = tmp_path / "odd.yaml", time.process_time()
    path.write_text(text)
    with pytest.raises(UserError) as refusal:
        read_document(path)
    message = str(refusal.value)
    assert message.startswith(str(path))
    assert expected in message
    assert "\n" not in message
    assert len(message) < len(str(path)) + 250
    assert time.process_time() - started < 3


def test_yaml_that_is_plain() -> None:
    value = {"a": [1, -2.5, 1e-4, None, True, "x"], "b": {"c": "d\n"}, "e": float("inf")}
    assert parse_yaml(yaml.safe_dump(value), "text") == value
    assert parse_yaml("a: {<<: {b: 1}, c: 2}", "text") == {"a": {"b": 1, "c": 2}}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"[" * 100_000, ": broken JSON (nested too deeply)"),
        (b'{"a":' * 100_000, ": broken JSON (nested too deeply)"),
        (b'\n{"a": 1,}', ":2: broken JSON"),
        (b"9" * 5000, ": broken JSON (Exceeds the limit"),
        (b"\xff\xfe", ": cannot be read as text"),
        (b" " * 2000, ": has more than the 1,000 bytes"),
    ],
)
def test_json_that_is_refused(tmp_path: Path, text: bytes, expected: str) -> None:
    path = tmp_path / "odd.json"
    path.write_bytes(text)
    with pytest.raises(UserError) as refusal:
        read_document(path, 1_000_000 if len(text) != 2000 else 1000)
    assert str(refusal.value).startswith(f"{path}{expected}")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.json", tmp_path / ("a" * 5000), f"{tmp_path}/a\0b"):
        with pytest.raises(UserError, match=r"cannot be read|no such|is a directory|no file"):
            read_document(path)
    (tmp_path / "marked.json").write_bytes(b"\xef\xbb\xbf" + json.dumps({"a": 1}).encode())
    assert read_document(tmp_path / "marked.json") == {"a": 1}


def test_every_reader_of_yaml_is_that_one(tmp_path: Path) -> None:
    path = tmp_path / "laughs.yaml"
    path.write_text(LAUGHS)
    for read in (Recipe.load, load_thresholds, lambda path: JudgePrompt.load(str(path))):
        with pytest.raises(UserError, match=r"laughs\.yaml:2: broken YAML \(aliases"):
            read(path)
    with pytest.raises(UserError, match="aliases"):
        Recipe.load("pocket-stage1", ["steps=[&a 1, *a]"])


@pytest.mark.parametrize(
    "override",
    ["steps=.inf", "steps=1000000000000", "learning_rate=.nan", "learning_rate=.inf", "weight_decay=1e300",
     "lora_rank=1000000000", "workers=1000000", "seed=99999999999999999999", "max_skipped=.nan", "batch_size=1e400",
     "steps=!!binary aGk=", "output=[1]", "data=[{path: x, weight: .inf}]"],
)  # fmt: skip
def test_a_recipes_numbers_are_finite_and_bounded(override: str) -> None:
    with pytest.raises(UserError, match=override.partition("=")[0]):
        Recipe.load("pocket-stage1", [override])


@pytest.mark.parametrize("value", [".nan", ".inf", "true", "[1]", "x", "1" * 30 + "e999"])
def test_thresholds_are_finite_numbers(tmp_path: Path, value: str) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(f"apology: {value}\n")
    with pytest.raises(UserError, match=r"apology = .*expected a number"):
        load_thresholds(path)
