"""The API's description for people: a page made from the OpenAPI schema. It has no scripts and needs no network."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from importlib import resources
from typing import Any

Schema = Mapping[str, Any]


def page(openapi: Schema) -> str:
    """The HTML page: every operation, what it takes field by field, and what it answers."""
    parts = [
        _operation(openapi, method, path, operation)
        for path, methods in openapi["paths"].items()
        for method, operation in methods.items()
    ]
    empty = resources.files("minigpt4.app.page").joinpath("assets/api.html").read_text(encoding="utf-8")
    return empty.replace("__PARTS__", "\n".join(parts))


def _operation(openapi: Schema, method: str, path: str, operation: Schema) -> str:
    parts = [f"<section><h2><b>{escape(method.upper())}</b> <code>{escape(path)}</code></h2>"]
    parts.append(f"<p>{escape(operation.get('description', '').replace('`', ''))}</p>")
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        parts.append(f"<h3>Takes <code>{escape(kind)}</code></h3>")
        parts += [_table(*found) for found in _objects(openapi, content["schema"])]
    for status, response in operation["responses"].items():
        parts.append(f"<details><summary>{escape(status)}: {escape(response['description'])}</summary>")
        for kind, content in response.get("content", {}).items():
            parts.append(f"<p><code>{escape(kind)}</code></p>")
            parts += [_table(*found) for found in _objects(openapi, content.get("schema", {}))]
        parts.append("</details>")
    return "".join(parts) + "</section>"


def _objects(openapi: Schema, schema: Schema) -> Iterator[tuple[str, Schema]]:
    """The objects that a schema is made of, each once and with its name, the outermost first."""
    waiting, seen = [("", schema)], set()
    while waiting:
        name, found = waiting.pop(0)
        if "properties" in found:
            yield name, found
        for reference in _references(found):
            if reference not in seen:
                seen.add(reference)
                waiting.append((reference, openapi["components"]["schemas"][reference]))


def _references(schema: Any) -> Iterator[str]:
    if isinstance(schema, Mapping):
        if "$ref" in schema:
            yield str(schema["$ref"]).rpartition("/")[2]
        schema = schema.values()
    elif not isinstance(schema, list):
        return
    for value in schema:
        yield from _references(value)


def _table(name: str, schema: Schema) -> str:
    rows = "".join(
        f"<tr><td><code>{escape(field)}</code>{' *' if field in schema.get('required', ()) else ''}</td>"
        f"<td>{escape(_kind(value))}</td><td>{escape(value.get('description', ''))}</td></tr>"
        for field, value in schema["properties"].items()
    )
    about = f"<caption>{escape(name)}{': ' if name and schema.get('description') else ''}"
    return f"<table>{about}{escape(schema.get('description', ''))}</caption>{rows}</table>"


_LIMITS = {
    "minimum": "at least {}", "exclusiveMinimum": "more than {}", "maximum": "at most {}",
    "exclusiveMaximum": "less than {}", "maxLength": "at most {} characters", "minItems": "at least {}",
    "maxItems": "at most {}",
}  # fmt: skip


def _kind(schema: Schema) -> str:
    """What a value must be, in words."""
    if "$ref" in schema:
        return str(schema["$ref"]).rpartition("/")[2]
    if "const" in schema:
        return repr(schema["const"])
    if "enum" in schema:
        return " or ".join(map(repr, schema["enum"]))
    if choices := schema.get("anyOf") or schema.get("oneOf"):
        return " or ".join(_kind(choice) for choice in choices if choice.get("type") != "null")
    kind = "list of " + _kind(schema["items"]) if schema.get("items") else schema.get("type", "anything")
    limits = [text.format(f"{schema[key]:,.10g}") for key, text in _LIMITS.items() if key in schema]
    return ", ".join([str(kind), *limits])
