"""Whatever the schema allows is answered as it says, and whatever it forbids is refused: requests made at random."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest
import schemathesis
from api_server import Running, serving, shown, user
from hypothesis import HealthCheck, given, settings, strategies
from openai.types.chat import ChatCompletion
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    negative_data_rejection,
    response_schema_conformance,
    status_code_conformance,
)

if TYPE_CHECKING:
    from minigpt4 import MiniGPT4


@pytest.fixture(scope="module")
def server(varied: MiniGPT4) -> Iterator[Running]:
    with serving(varied) as running:
        yield running


CHECKS = [
    not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance,
    negative_data_rejection,
]  # fmt: skip
CHAT = "POST /v1/chat/completions"
GOOD, BAD = GenerationMode.POSITIVE, GenerationMode.NEGATIVE


@pytest.mark.parametrize(
    ("label", "mode", "count"),
    [
        *((CHAT, mode, 80) for mode in (GOOD, BAD)),
        *((f"GET {path}", GOOD, 5) for path in ("/v1/models", "/v1/models/{name}", "/health", "/metrics")),
    ],
)
def test_every_response_is_as_described(server: Running, label: str, mode: GenerationMode, count: int) -> None:
    schema = schemathesis.openapi.from_url(f"http://127.0.0.1:{server.port}/openapi.json")
    operations = {result.ok().label: result.ok() for result in schema.get_all_operations()}
    assert len(operations) == 5
    seen = set()

    @settings(max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=HealthCheck)
    @given(case=operations[label].as_strategy(generation_mode=mode), polite=strategies.booleans())
    def check(case: schemathesis.Case, polite: bool) -> None:
        if (label, mode) == (CHAT, GOOD) and isinstance(case.body, dict) and "messages" in case.body:
            case.body["max_tokens"] = min(case.body.get("max_tokens") or 20, 20)
            if polite:  # in what no schema says: what the model is called, and who speaks when
                case.body |= {"model": "toy", "messages": [user("What is it?", shown(Image.new("RGB", (9, 9))))]}
        response = case.call()
        seen.add(response.status_code)
        case.validate_response(response, checks=CHECKS)
        if response.status_code >= 400:
            assert set(response.json()) == {"error"}
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}
        elif label == CHAT and not case.body.get("stream"):
            ChatCompletion.model_validate_json(response.content)

    check()
    assert (200 in seen) is (mode is GOOD and "{name}" not in label)
    assert (400 in seen) is (label == CHAT)
