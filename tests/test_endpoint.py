"""Each way in which an endpoint misbehaves, by a real server."""

from __future__ import annotations

import email.utils
import json
import logging
import threading
import time
from collections.abc import Callable
from contextlib import nullcontext
from urllib.parse import unquote

import pytest

from endpoint import Server
from minigpt4 import endpoint as module
from minigpt4.endpoint import ROOM, Endpoint, Unanswered, split_address, without_thought
from minigpt4.errors import UserError

TALK = [{"role": "user", "content": "A red ball."}]
KEY = "sk-very-secret-5551"


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_PAUSE", 0.02)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)


def ask(server: Server, **more: float) -> module.Reply:
    return Endpoint(server.url, "any", **more).ask(TALK, max_tokens=50, temperature=0, name="n1")  # type: ignore[arg-type]


def test_an_answer(serve: Callable[..., Server]) -> None:
    server = serve("ok")
    reply = ask(server)
    assert (reply.text, reply.ended, reply.tokens) == ("A red ball.", True, 30)
    [request] = server.requests
    assert request["key"] == f"Bearer {KEY}"
    assert request["idempotency"] == "n1"
    assert request["body"]["max_tokens"] == 50
    assert ask(serve("length")).ended is False


@pytest.mark.parametrize(
    "trouble", ["status:500", "status:503", "status:408", "html", "json", "nonsense", "empty", "cut", "hang:1.5"]
)
def test_what_may_pass_is_tried_again(serve: Callable[..., Server], trouble: str) -> None:
    server = serve(trouble, trouble, "ok")
    assert ask(server, timeout=1.0).text == "A red ball."
    assert len(server.requests) == 3


def test_a_rate_limit_is_kept_to(serve: Callable[..., Server]) -> None:
    server = serve("status:429,0.7", "ok")
    assert ask(server).text == "A red ball."
    first, second = (request["at"] for request in server.requests)
    assert second - first >= 0.7
    date = email.utils.formatdate(time.time() + 30, usegmt=True)
    assert 25 < (module._asked_pause(date) or 0) <= 30
    for nonsense in ("soon", "nan", "-3"):
        assert module._asked_pause(nonsense) in (None, 0.0)


@pytest.mark.parametrize(("trouble", "says"), [("status:500", "HTTP 500"), ("empty", "empty"), ("cut", "cut")])
def test_what_does_not_pass_is_given_up(serve: Callable[..., Server], trouble: str, says: str) -> None:
    server = serve(trouble)
    with pytest.raises(Unanswered, match=says):
        ask(server, attempts=3)
    assert len(server.requests) == 3


@pytest.mark.parametrize(
    ("status", "says"), [(401, "OPENAI_API_KEY"), (403, "may not"), (404, "/v1"), (400, "malformed")]
)
def test_a_refusal_is_told_once_and_without_the_key(serve: Callable[..., Server], status: int, says: str) -> None:
    server = serve(f"status:{status}")
    with pytest.raises(UserError, match=says) as caught:
        ask(server)
    assert KEY not in str(caught.value)
    assert len(server.requests) == 1


def test_nobody_there() -> None:
    with pytest.raises(Unanswered, match="no connection"):
        Endpoint("http://127.0.0.1:9/v1", "any", attempts=2).ask(TALK, max_tokens=5, temperature=0)
    with pytest.raises(UserError, match="base URL"):
        Endpoint("localhost:8000", "any")


def test_a_key_that_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-\u201cquoted\u201d")
    with pytest.raises(UserError, match="OPENAI_API_KEY") as caught:
        Endpoint("http://127.0.0.1:9/v1", "any")
    assert "quoted" not in str(caught.value)


def test_pauses_grow_and_differ() -> None:
    endpoint = Endpoint("http://127.0.0.1:9/v1", "any")
    pauses = [[endpoint._pause(attempt) for _ in range(50)] for attempt in range(4)]
    for attempt, drawn in enumerate(pauses):
        assert 0.01 * 2**attempt <= min(drawn) < max(drawn) <= 0.02 * 2**attempt


def test_work_is_limited_and_recorded_when_it_ends_early() -> None:
    at_once, most, lock = 0, 0, threading.Lock()
    recorded: list[int] = []

    def work(task: int) -> int:
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.02)
        with lock:
            at_once -= 1
        if task == 5:
            raise UserError("enough")
        return -task

    def record(task: int, found: object) -> None:
        assert found == -task
        recorded.append(task)

    with pytest.raises(UserError, match="enough"):
        Endpoint("http://127.0.0.1:9/v1", "any").ask_each(range(100), work, record, 3)
    assert most == 3
    assert 4 < len(recorded) < 12
    assert set(range(5)) <= set(recorded)


@pytest.mark.parametrize(
    ("outcomes", "ends"),
    [("....x", False), ("..xx.x", False), ("xx", True), ("..xxx..", True), (".rrrrr.", False), ("r" * 14 + ".", False),
     ("rr", False), ("r" * 15 + "..", True)],
)  # fmt: skip
def test_failures_in_a_row_end_the_work_and_a_single_one_does_not(
    outcomes: str, ends: bool, caplog: pytest.LogCaptureFixture
) -> None:
    recorded: list[str] = []

    def work(task: int) -> str:
        if outcomes[task] in "xr":
            raise Unanswered("HTTP 500", refused=outcomes[task] == "r")
        return "."

    def record(task: int, found: object) -> None:
        recorded.append(("r" if found.refused else "x") if isinstance(found, Unanswered) else str(found))

    endpoint = Endpoint("http://127.0.0.1:9/v1", "any")
    with pytest.raises(UserError, match="HTTP 500; what was answered is recorded") if ends else nullcontext():
        endpoint.ask_each(range(len(outcomes)), work, record, 1)
    assert "".join(recorded) == (outcomes.rstrip(".") if ends else outcomes)
    failures = len(outcomes.replace(".", ""))
    assert (f"{failures} of {len(outcomes)} not answered (the last: HTTP 500)" in caplog.text) is not ends


@pytest.mark.parametrize(
    ("signed", "header"),
    [
        ("me:p%40ss:w", "Basic bWU6cEBzczp3"),
        (":secret", "Basic OnNlY3JldA=="),
        ("sk-in-address", "Bearer sk-in-address"),
    ],
)
def test_a_password_in_the_address_is_used_and_not_shown(
    serve: Callable[..., Server], caplog: pytest.LogCaptureFixture, signed: str, header: str
) -> None:
    caplog.set_level(logging.DEBUG)
    server = serve("ok", "status:500", "status:401")
    endpoint = Endpoint(server.url.replace("://", f"://{signed}@"), "any", attempts=2)
    assert endpoint.url == server.url
    endpoint.ask(TALK, max_tokens=50, temperature=0)
    with pytest.raises(UserError) as caught:
        endpoint.ask(TALK, max_tokens=50, temperature=0)
    assert [request["key"] for request in server.requests] == [header] * 3
    for secret in (signed, unquote(signed), header.split()[1]):
        assert secret not in str(caught.value)
        assert secret not in caplog.text


@pytest.mark.parametrize(
    "url",
    ["http://me:word/x@host/v1", "http://me:word#x@host/v1", "http://me:word?x@host/v1", "ftp://me:word@host/v1",
     "http://me:word@/v1", "http://me:word@host:99999/v1", "http://me:word@host/v1?key=word", "http://[::1/word",
     "me:word@host/v1"],
)  # fmt: skip
def test_addresses_that_cannot_be_read_are_not_repeated(url: str) -> None:
    with pytest.raises(UserError, match="base URL") as caught:
        Endpoint(url, "any")
    assert "word@" not in str(caught.value)
    assert "=word" not in str(caught.value)
    assert "word" not in str(caught.value).replace("password", "")


def test_messages_lose_passwords() -> None:
    mistake = UserError("openai:http://me:secret@host:80/v1#a@b and x@y, https://u@h: http://h/a@b")
    assert str(mistake) == "openai:http://host:80/v1#a@b and x@y, https://h: http://h/a@b"
    assert split_address("http://[::1]:8000/v1")[0] == "http://[::1]:8000/v1"


IMAGE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]}]


@pytest.mark.parametrize(
    "refusals",
    [
        ["new"],
        ["error:400,Unrecognized request argument supplied: max_tokens", "error:400,`temperature`: must be positive"],
        ["error:422,max_tokens: Extra inputs are not permitted", "error:422,temperature: Extra inputs"],
    ],
)
def test_a_parameter_that_is_refused_is_not_sent_again(serve: Callable[..., Server], refusals: list[str]) -> None:
    server = serve(*refusals, *["ok"] * (len(refusals) > 1))
    endpoint = Endpoint(server.url, "any", attempts=1)
    for _ in range(2):
        assert endpoint.ask(TALK, max_tokens=50, temperature=0).text == "A red ball."
    *_, third, fourth = (request["body"] for request in server.requests)
    assert len(server.requests) == 4
    assert third == fourth == {"model": "any", "messages": TALK, "max_completion_tokens": 50}


def test_a_model_without_system_messages_gets_them_before_the_question(serve: Callable[..., Server]) -> None:
    server = serve("error:400,System role not supported", "ok")
    system = {"role": "system", "content": "Be brief."}
    endpoint = Endpoint(server.url, "any")
    endpoint.ask([system, *TALK], max_tokens=50, temperature=0)
    assert server.requests[1]["body"]["messages"] == [{"role": "user", "content": "Be brief.\n\nA red ball."}]
    endpoint.ask([system, *IMAGE], max_tokens=50, temperature=0)
    [message] = server.requests[2]["body"]["messages"]
    assert [part["type"] for part in message["content"]] == ["text", "image_url"]


@pytest.mark.parametrize(
    ("said", "answer"),
    [
        ("<think>\nIt does.\n</think>\n\nyes\nIt names it.", "yes\nIt names it."),
        ("<think>\n\n</think>\n\nno", "no"),
        ("It does.\n</think>\n\nyes", "yes"),
        ("<thinking>Hm.</thinking>\nyes", "yes"),
        ("<reasoning effort='low'>a</reasoning><think>b</think> c", "c"),
        ("<think>a <think>b</think> c</think>d", "d"),
        ("[THINK]a[/THINK]b", "b"),
        ("<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b", "b"),
        ("<think>a</think><answer> B </answer>", "B"),
        ("<think>a", None),
        ("A tag <think> and its end </think>.", "A tag <think> and its end </think>."),
        ("<thinker>a</thinker>", "<thinker>a</thinker>"),
        ("", ""),
    ],
)
def test_a_thought_before_the_answer_is_removed(said: str, answer: str | None) -> None:
    assert without_thought(said) == answer


def test_a_model_that_thinks_gets_the_tokens_for_it(serve: Callable[..., Server]) -> None:
    server = serve("think:3000")
    endpoint = Endpoint(server.url, "any", attempts=1)
    reply = endpoint.ask(TALK, max_tokens=50, temperature=0)
    assert (reply.text, reply.ended, reply.tokens) == ("yes", True, 60)  # the attempt that broke off was paid for too
    assert 0 < reply.thought_tokens < reply.answer_tokens
    endpoint.ask(TALK, max_tokens=50, temperature=0)
    assert [request["body"]["max_tokens"] for request in server.requests] == [50, 50 + ROOM[1], 50 + ROOM[1]]


def test_a_thought_that_never_ends_is_no_answer(serve: Callable[..., Server]) -> None:
    endless = serve("think:1000000")
    with pytest.raises(Unanswered, match="broke off inside its thought") as caught:
        ask(endless)
    assert [request["body"]["max_tokens"] for request in endless.requests] == [50 + room for room in ROOM]
    assert caught.value.tokens == 30 * len(ROOM)
    small = serve("think:1000000", "error:400,'max_tokens' is too large: 4146. The maximum context is 2048 tokens.",
                  "think:1000000")  # fmt: skip
    endpoint = Endpoint(small.url, "any")
    for _ in range(2):
        with pytest.raises(Unanswered, match="broke off"):
            endpoint.ask(TALK, max_tokens=50, temperature=0)
    assert [request["body"]["max_tokens"] for request in small.requests] == [50, 50 + ROOM[1], 50, 50]


def choice(finish: str = "stop", **message: object) -> str:
    return "raw:" + json.dumps({"choices": [{"finish_reason": finish, "message": {"content": None, **message}}]})


def test_the_forms_that_answers_come_in(serve: Callable[..., Server]) -> None:
    parts = [{"type": "thinking", "thinking": "Hm."}, *({"type": "text", "text": t} for t in ("A red ", "ball."))]
    apart = choice(content="A ball.", reasoning_content="I see a ball, or a cat.")
    hidden = [choice("length", content=""), choice(content="A ball.")]
    server = serve(choice(content=parts), apart, *hidden, 'raw:{"choices": []}', "ok")
    endpoint = Endpoint(server.url, "any")
    said = [endpoint.ask(TALK, max_tokens=50, temperature=0).text for _ in range(4)]
    assert said == ["A red ball.", "A ball.", "A ball.", "A red ball."]
    assert [request["body"]["max_tokens"] for request in server.requests[2:4]] == [50, 50 + ROOM[1]]
    with pytest.raises(Unanswered, match="broke off inside its thought"):
        ask(serve(choice(reasoning_content="I see")))
    for declined in (choice(refusal="I cannot help with that."), choice("content_filter", content="A r")):
        with pytest.raises(Unanswered, match="refused") as caught:
            ask(serve(declined))
        assert caught.value.refused


@pytest.mark.parametrize(
    "refusal",
    ["error:400,You uploaded an unsupported image.", "error:413,Request Entity Too Large", "error:422,bad base64 data",
     "error:400,Your request was rejected by our content policy.", "error:415,Invalid MIME type: bmp",
     "error:400,The prompt is too long: 5000 tokens, 4096 at most."],
)  # fmt: skip
def test_an_image_that_is_refused_costs_that_image(serve: Callable[..., Server], refusal: str) -> None:
    server = serve(refusal)
    with pytest.raises(Unanswered, match=refusal.partition(",")[2]) as caught:
        Endpoint(server.url, "any").ask(IMAGE, max_tokens=5, temperature=0)
    assert caught.value.refused
    assert len(server.requests) == 1
    with pytest.raises(UserError, match=r"HTTP 404.*no model"):
        Endpoint(serve("error:404,The model does not exist.").url, "any").ask(IMAGE, max_tokens=5, temperature=0)
    with pytest.raises(UserError, match=r"HTTP 400.*no model image-1"):
        Endpoint(serve("error:400,There is no model image-1.").url, "image-1").ask(IMAGE, max_tokens=5, temperature=0)


@pytest.mark.parametrize("model", ["m", "age", "support"])
def test_a_models_name_inside_of_a_word_is_part_of_the_word(serve: Callable[..., Server], model: str) -> None:
    server = serve("error:400,You uploaded an unsupported image.")
    with pytest.raises(Unanswered, match="unsupported image"):
        Endpoint(server.url, model).ask(IMAGE, max_tokens=5, temperature=0)


def test_a_refusal_after_answers_is_about_one_conversation(serve: Callable[..., Server]) -> None:
    endpoint = Endpoint(serve("ok", "error:400,bad request").url, "any")
    endpoint.ask(TALK, max_tokens=5, temperature=0)
    with pytest.raises(Unanswered, match="HTTP 400: bad request"):
        endpoint.ask(TALK, max_tokens=5, temperature=0)
    with pytest.raises(UserError, match=r'HTTP 400.*it says "bad request"'):
        ask(serve("error:400,bad request"))


def test_no_proxy_lies_between_this_machine_and_itself(
    serve: Callable[..., Server], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve("ok")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert ask(server, attempts=1).text == "A red ball."
    with pytest.raises(Unanswered, match="no connection"):
        Endpoint("http://example.invalid/v1", "any", attempts=1).ask(TALK, max_tokens=5, temperature=0)
    monkeypatch.setenv("ALL_PROXY", "ftp://127.0.0.1:9")
    monkeypatch.setenv("all_proxy", "ftp://127.0.0.1:9")
    assert ask(server, attempts=1).text == "A red ball."
    with pytest.raises(UserError, match=r"^http://example.invalid/v1: cannot be reached as the proxy variables say"):
        Endpoint("http://example.invalid/v1", "any")


@pytest.mark.parametrize("proxy", ["http://127.0.0.1:9", "socks5://127.0.0.1:9", "socks://127.0.0.1:9"])
def test_no_proxy_stands_before_an_endpoint_on_this_machine(
    serve: Callable[..., Server], proxy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy)
    assert ask(serve("ok")).text
    if proxy.startswith("socks:"):
        with pytest.raises(UserError, match=r"http://example\.org/v1: cannot be reached as the proxy variables say"):
            Endpoint("http://example.org/v1", "m")
