"""JSON and YAML files that somebody else may have written: read within bounds, or refused in one line."""

import difflib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import TypeAdapter, ValidationError

from minigpt4.errors import UserError
from minigpt4.files import read_file

T = TypeVar("T")

#: Bytes of a file that is read at one go. The largest of the field (VQAv2's annotations) take 0.4 GB.
LARGEST_JSON, LARGEST_YAML = 1_000_000_000, 1_000_000
_DEEPEST, _LONGEST_NUMBER = 32, 40
_BOUNDS = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
_KINDS = {
    "int": "a whole number", "float": "a number", "bool": "true or false", "list": "a list", "dict": "a JSON object",
    "model": "a JSON object", "string": "a valid string", "finite": "a number",
}  # fmt: skip


def read_document(path: str | Path, largest: int = LARGEST_JSON) -> Any:
    """What a .yaml, .yml or JSON file of at most `largest` bytes holds. Raises UserError that names file and line."""
    if Path(path).suffix in (".yaml", ".yml"):
        return read_yaml(path)
    text = _read_text(path, largest)
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: broken JSON ({error.msg})") from None
    except RecursionError:
        raise UserError(f"{path}: broken JSON (nested too deeply)") from None
    except ValueError as error:  # an integer of thousands of digits
        raise UserError(f"{path}: broken JSON ({str(error).partition(';')[0]})") from None


def read_yaml(path: str | Path) -> Any:
    """What a YAML file holds, whatever its name ends in; errors as `read_document`."""
    return parse_yaml(_read_text(path, LARGEST_YAML), str(path))


def _read_text(path: str | Path, largest: int) -> str:
    try:
        return read_file(path, largest, "a YAML or JSON file").decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: cannot be read as text ({error})") from None


def parse_yaml(text: str, name: str) -> Any:
    """What a YAML text holds. Raises UserError that names it as `name`, and the line."""
    try:
        return yaml.load(text, _Loader)
    except Exception as error:  # what PyYAML makes of odd numbers, dates and tags raises whatever Python does
        mark, problem = getattr(error, "problem_mark", None), getattr(error, "problem", None)
        where = f"{name}:{mark.line + 1}" if mark else name
        told = problem or " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{where}: broken YAML ({told})") from None


def check(adapter: TypeAdapter[T], value: Any, name: str) -> T:
    """`value` as the type of `adapter`. Raises UserError that names it as `name`, and the first key at fault."""
    try:
        return adapter.validate_python(value)
    except ValidationError as error:
        raise UserError(f"{name}: {explain(error)}") from None


def explain(error: ValidationError) -> str:
    """The first mistake that a schema found, with its key, in one line."""
    mistake = error.errors(include_url=False)[0]
    key = ".".join(map(str, mistake["loc"]))
    if mistake["type"] == "missing":
        return f"{key!r} is missing"
    if mistake["type"] == "extra_forbidden":
        return f"there is no key {key!r}"
    if mistake["type"] == "value_error":
        return ": ".join(filter(None, (key, str(mistake["ctx"]["error"]))))
    return f"{key} = {mistake['input']!r:.60}: {requirement(mistake)}"


def requirement(mistake: Mapping[str, Any]) -> str:
    """What a value must be, where pydantic found `mistake`, in our words."""
    kind, context = mistake["type"], mistake.get("ctx", {})
    for bound, words in _BOUNDS.items():
        if bound in context:
            return f"must be {words} {context[bound]}"
    if kind.endswith(("_type", "_parsing", "_from_float")) and kind.split("_")[0] in _KINDS:
        return f"must be {_KINDS[kind.split('_')[0]]}"
    said = str(mistake["msg"]).removeprefix("Value error, ").replace(" after validation", "")
    return (said[0].lower() + said[1:]).replace("input should be", "must be")


def did_you_mean(word: str, known: Iterable[str], cutoff: float = 0.5) -> str:
    """The end of a message about an unknown word: the known one that is as near as `cutoff` (0 to 1), if there is."""
    nearest = difflib.get_close_matches(word, known, n=1, cutoff=cutoff)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


class _Loader(yaml.SafeLoader):
    """Plain YAML of bounded depth, each key once, without aliases (a few of them stand for billions of values)."""

    _depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent):
            raise _mistake(f"aliases such as *{event.anchor} are not read; write the value out", event)
        if self._depth == _DEEPEST:
            raise _mistake(f"nested more than {_DEEPEST} deep", event)
        self._depth += 1
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1

    def construct_scalar(self, node: Any) -> Any:
        text = super().construct_scalar(node)
        if node.tag.endswith((":int", ":float")) and len(text) > _LONGEST_NUMBER:  # their arithmetic takes minutes
            raise _mistake(f"a number of {len(text)} characters", node)
        if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
            raise _mistake("a character that no text holds", node)
        return text

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if isinstance(key.value, str) and key.tag != "tag:yaml.org,2002:merge":
                if key.value in seen:
                    raise _mistake(f"the key {key.value!r} stands there twice", key)
                seen.add(key.value)
        return super().construct_mapping(node, deep)


def _mistake(problem: str, where: Any) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, where.start_mark)
