"""An OpenAI-compatible endpoint that may misbehave: one question in, one whole answer out, or one line that says why.

The client library speaks the protocol; what is added here is patience. Whatever may pass (no connection, a timeout,
429, 5xx, an answer that is cut or makes no sense) is tried again after a pause that grows, or that the server asked
for. A parameter that the model refuses is left out or renamed from then on, and a model that thinks first gets the
tokens for it. What will not pass (a wrong key, an unknown model) ends the work at once. Nothing here prints the key.
"""

import base64
import itertools
import json
import logging
import math
import os
import random
import re
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from minigpt4.documents import read_yaml
from minigpt4.errors import UserError
from minigpt4.local_web import LOOPBACK
from minigpt4.stopping import StopSignals

logger = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")

KEY_VARIABLE = "OPENAI_API_KEY"  # where the key is looked for; a local endpoint needs none
HERE = (*LOOPBACK, "0.0.0.0")  # hosts that are this machine; servers print 0.0.0.0 as their address
FIRST_PAUSE, LONGEST_PAUSE, LONGEST_WAIT_ASKED = 0.5, 30.0, 300.0
_PASSING = {408, 409, 425, 429}
_EMPTY = "an empty answer"
#: Tokens for the thought before an answer, beside those for the answer; the first step is for models that do not think.
ROOM = (0, 4096, 16_384)
_THOUGHT, _THOUGHT_END, _LIMIT_REACHED, _TOO_LONG, _NO_SYSTEM, _POLICY, _IMAGE = (
    re.compile(pattern, re.I) for pattern in read_yaml(Path(__file__).with_name("endpoint.yaml")).values()
)


class Unanswered(Exception):  # noqa: N818 - the endpoint's fault, not an error here
    """The endpoint gave no usable answer, however often it was asked. `tokens` were paid for, as far as is known."""

    def __init__(self, reason: str, tokens: int = 0, *, refused: bool = False) -> None:
        super().__init__(reason)
        self.tokens, self.refused = tokens, refused  # refused: others may be answered
        self.empty = reason == _EMPTY  # it did answer, with nothing


@dataclass(frozen=True)
class Reply:
    """An answer. `ended` is False if the endpoint cut it off at the limit; `tokens` counts prompt and answer."""

    text: str
    ended: bool
    prompt_tokens: int
    answer_tokens: int  # those of the thought before it included
    thought_tokens: int = 0

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.answer_tokens


def estimate_tokens(text: str) -> int:
    """About how many tokens an LLM cuts an English `text` into: one for every four characters."""
    return math.ceil(len(text) / 4)


def split_address(url: str) -> tuple[str, str, str | None]:
    """(address without them, user or key, password) of a base URL. Raises UserError, which shows nothing of them."""
    try:
        parts = urlsplit(url)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        netloc = f"{host}:{parts.port}" if parts.port is not None else host
    except ValueError:  # an impossible port: perhaps a password with a / in it
        netloc = None
    if not netloc or parts.scheme not in ("http", "https") or parts.query or parts.fragment or "@" in parts.path:
        write = "write : / @ ? # in a user or password as %3A %2F %40 %3F %23"
        raise UserError(f"the endpoint's address is no base URL such as http://localhost:8000/v1 ({write})")
    password = None if parts.password is None else unquote(parts.password)
    return parts._replace(netloc=netloc).geturl(), unquote(parts.username or ""), password


class Endpoint:
    """An endpoint and the model that it is asked for. Safe to use from several threads.

    `url` is the base, as in `http://localhost:8000/v1`; a `USER:PASSWORD@` or `KEY@` in it signs in, and is kept out of
    `self.url`. One question is asked `attempts` times at most, `timeout` seconds each. Raises UserError without the
    client library, and if the address, the key or a proxy variable cannot be used.
    """

    def __init__(self, url: str, model: str, *, timeout: float = 120.0, attempts: int = 6) -> None:
        try:
            import openai
        except ImportError:
            raise UserError("asking an endpoint needs the client library: pip install openai") from None
        self.url, user, password = split_address(url)
        key = (password is None and user) or os.environ.get(KEY_VARIABLE, "").strip() or "none"
        if not key.isascii() or not key.isprintable():
            raise UserError(f"the key in {KEY_VARIABLE} holds characters that no key has; copy it again")
        basic = base64.b64encode(f"{user}:{password}".encode()).decode()
        self.model, self.attempts = model, attempts
        self.stopped = threading.Event()  # ends pauses and attempts early once it is set
        self._openai: Any = openai
        try:
            self._client = openai.OpenAI(
                base_url=self.url, api_key=key, timeout=timeout, max_retries=0,
                default_headers=None if password is None else {"Authorization": f"Basic {basic}"},
                # No proxy lies between this machine and itself.
                http_client=openai.DefaultHttpxClient(trust_env=urlsplit(self.url).hostname not in HERE),
            )  # fmt: skip
        except Exception as error:  # httpx has several for proxy variables that it cannot use
            raise UserError(f"{self.url}: cannot be reached as the proxy variables say ({error})") from None
        self._secrets = [secret for secret in (key, user, password, basic) if secret and len(secret) > 4]
        # What is learnt from refusals and broken thoughts. Threads may learn the same thing at the same time.
        self._refused, self._room, self._most_room, self._answered = set[str](), 0, ROOM[-1], False

    def ask(self, messages: Sequence[dict[str, Any]], *, max_tokens: int, temperature: float, name: str = "") -> Reply:
        """The answer to a conversation, without a thought before it. Raises Unanswered, or UserError for good."""
        reason, paid, attempt = "stopped", 0, 0
        while attempt < self.attempts and not self.stopped.is_set():
            room, pause = self._room, self._pause(attempt)
            sent = self._arguments(messages, max_tokens + room, temperature)
            try:
                once = {"Idempotency-Key": name} if name else {}  # a repeated request is charged once
                raw = self._client.chat.completions.with_raw_response.create(**sent, extra_headers=once)
                reply = _read(raw.http_response.text)
                if isinstance(reply, Reply):
                    paid += reply.tokens
                    if not reply.ended and reply.thought_tokens and self._make_room(room):
                        continue
                    self._answered = True
                    if not reply.text:
                        thought = f"the answer broke off inside its thought, after {reply.answer_tokens} tokens"
                        raise Unanswered(thought, paid)
                    return replace(reply, prompt_tokens=paid - reply.answer_tokens)
                reason = reply
                paid += sum(estimate_tokens(m["content"]) for m in messages if isinstance(m["content"], str))
            except self._openai.APIStatusError as error:
                reason = f"HTTP {error.status_code}"
                if error.status_code not in _PASSING and error.status_code < 500:
                    if self._adapt(_words(error), sent, room):
                        continue
                    raise self._refusal(error, sent, paid) from None
                asked = _asked_pause(error.response.headers.get("retry-after", ""))
                pause = pause if asked is None else asked
            except self._openai.APITimeoutError:
                reason = "timed out"
            except self._openai.APIConnectionError as error:
                reason = f"no connection, or it was cut ({error.__cause__ or error})"
            attempt += 1
            logger.debug("%s: %s, attempt %d of %d", self.url, reason, attempt, self.attempts)
            if attempt < self.attempts:
                self.stopped.wait(pause)
        raise Unanswered(reason, paid)

    def _arguments(self, messages: Sequence[dict[str, Any]], max_tokens: int, temperature: float) -> dict[str, Any]:
        """What is sent, in the way that this endpoint has been found to take it."""
        first, *others = messages
        if first["role"] == "system" and "system" in self._refused and others:
            content = others[0]["content"]
            text = {"type": "text", "text": first["content"]}
            content = [text, *content] if isinstance(content, list) else f"{first['content']}\n\n{content}"
            messages = [{**others[0], "content": content}, *others[1:]]
        options = {"max_tokens": max_tokens, "temperature": temperature}
        if "max_tokens" in self._refused:
            options["max_completion_tokens"] = max_tokens
        options = {name: value for name, value in options.items() if name not in self._refused}
        return {"model": self.model, "messages": list(messages), **options}

    def _adapt(self, told: str, sent: dict[str, Any], room: int) -> bool:
        """Whether to ask again in another way, and that from now on, after a refusal that was `told` so."""
        if _LIMIT_REACHED.search(told):
            return self._make_room(room)
        if _TOO_LONG.search(told):
            if room:
                self._most_room = max(step for step in ROOM if step < room)
                self._room = min(self._room, self._most_room)
            return room > 0
        named = [name for name in sent if name not in ("model", "messages") and re.search(rf"\b{name}\b", told)]
        if not named and len(sent["messages"]) > 1 and sent["messages"][0]["role"] == "system":
            named = ["system"] if _NO_SYSTEM.search(told) else []
        if named and named[0] not in self._refused:
            logger.warning("endpoint %s: %s refuses %r, so it is not sent any more", self.url, self.model, named[0])
        self._refused.update(named[:1])
        return bool(named)

    def _make_room(self, room: int) -> bool:
        """Whether there may be more tokens than `room` for the thought before an answer; they are given from now on."""
        larger = [step for step in ROOM if room < step <= self._most_room]
        self._room = max([self._room, *larger[:1]])
        return bool(larger)

    def ask_each(
        self,
        tasks: Sequence[T],
        work: Callable[[T], R],
        record: Callable[[T, R | Unanswered], bool | None],
        concurrency: int,
    ) -> None:
        """`record(task, work(task))` for all tasks, at most `concurrency` of them at work at once.

        `record` runs in the caller's thread as soon as its result is there (or Unanswered, if `work` raises that), and
        returns False to stop. What is under way then is waited for and recorded too: it may have been paid.

        Raises UserError if as many answers in a row as are asked for at once (at least three), or all of them, failed,
        or if the endpoint refused 5 times as many and answered none; KeyboardInterrupt if stopped; what `work` raises.
        """
        waiting, running = iter(tasks), dict[Future[R], T]()
        row, most, answered, failures = 0, max(3, concurrency), 0, list[Unanswered]()
        going, hopeless, trouble = True, False, None
        self.stopped.clear()
        with StopSignals() as stop, ThreadPoolExecutor(concurrency, thread_name_prefix="minigpt4-ask") as pool:
            while True:
                for task in itertools.islice(waiting, concurrency - len(running) if going and not stop.received else 0):
                    running[pool.submit(work, task)] = task
                if not running:
                    break
                ended = wait(running, timeout=0.2, return_when=FIRST_COMPLETED).done
                if stop.received:
                    self.stopped.set()
                for future in ended:
                    task, error = running.pop(future), future.exception()
                    if error is None:
                        row, answered = 0, answered + 1
                    elif isinstance(error, Unanswered):
                        row += not error.refused
                        failures.append(error)
                    else:
                        trouble, going = trouble or error, False
                        continue
                    hopeless |= row >= min(most, len(tasks)) or (not answered and len(failures) >= 5 * most)
                    if record(task, error or future.result()) is False or hopeless:
                        going = False
        if trouble is not None:
            raise trouble
        stop.check()
        if hopeless:
            raise UserError(f"endpoint {self.url}: {failures[-1]}; what was answered is recorded, run it again later")
        if failures:
            logger.warning(
                "endpoint %s: %d of %d not answered (the last: %s); the same command asks again",
                self.url, len(failures), len(tasks), failures[-1],
            )  # fmt: skip

    def _pause(self, attempt: int) -> float:
        """Seconds before the next attempt: doubled each time, between half of it and all of it at random."""
        return min(LONGEST_PAUSE, FIRST_PAUSE * 2**attempt) * random.uniform(0.5, 1.0)

    def _refusal(self, error: Any, sent: dict[str, Any], paid: int) -> Exception:
        """What to raise for a status that will not pass: it ends the work, or costs this conversation only."""
        status, told = error.status_code, _words(error)[:300]
        for secret in self._secrets:  # some servers repeat the key that they were given
            told = told.replace(secret, "...")
        about = re.sub(rf"(?<![\w-]){re.escape(self.model)}(?![\w-])", "", told)  # a name may hold "image"
        shown = any(isinstance(message["content"], list) for message in sent["messages"])
        causes = (_POLICY, _TOO_LONG, _LIMIT_REACHED, *([_IMAGE] if shown else []))
        this_one = any(cause.search(about) for cause in causes)
        if status == 413 or (status in (400, 415, 422) and this_one) or (status == 403 and _POLICY.search(about)):
            return Unanswered(f"refused with HTTP {status}: {told}", paid, refused=True)
        if self._answered and status in (400, 415, 422):  # it answers others, so this is about this conversation
            return Unanswered(f"HTTP {status}: {told}", paid)
        what = {
            400: "the request is malformed for it (is it a chat endpoint, and can its model read such prompts?)",
            401: f"the key is wrong or missing; set {KEY_VARIABLE} in the environment",
            403: f"the key in {KEY_VARIABLE} may not use this model",
            404: f"there is no such path or no model {self.model!r}; the base usually ends in /v1",
        }.get(status, "it refuses the request")
        said = "" if status in (401, 403) or not told else f'; it says "{told}"'
        return UserError(f"endpoint {self.url}: HTTP {status}, {what}{said}; what was answered before is recorded")


def _words(error: Any) -> str:
    """What a refusal says, in one line: the parameter that it names, its code and its message."""
    body = error.body
    detail = body.get("message") or body.get("detail") or body.get("error") if isinstance(body, dict) else body
    if isinstance(detail, list):  # as FastAPI tells each field; its `input` repeats the request
        detail = "; ".join(f"{d.get('loc')}: {d.get('msg')}" if isinstance(d, dict) else str(d) for d in detail)
    told = str(detail or "")
    for name in ("param", "code") if isinstance(body, dict) else ():
        told += f" ({body[name]})" if body.get(name) and str(body[name]) not in told else ""
    return " ".join(re.sub(r"data:image/\S+|<[^>]*>", " ", told).split())[:2000]


def _read(body: str) -> Reply | str:
    """The answer in a response's body, or what is wrong with it. Raises Unanswered if the model declined to answer."""
    try:
        whole = json.loads(body)
        choice = whole["choices"][0]
        message = choice["message"]
        said, finish = message.get("content"), choice.get("finish_reason")
    except (ValueError, LookupError, TypeError, AttributeError):
        return "an answer that is not in the protocol's JSON"
    usage = _mapping(whole.get("usage"))
    prompt, answer = usage.get("prompt_tokens"), usage.get("completion_tokens")
    prompt = prompt if isinstance(prompt, int) else 0
    if message.get("refusal") or finish == "content_filter":
        why = message.get("refusal") or "its filter of contents"
        raise Unanswered(f"refused: {why}"[:300], prompt, refused=True)
    parts = said if isinstance(said, list) else [{"type": "text", "text": said}]
    shown = "".join(str(p.get("text") or "") for p in parts if isinstance(p, dict) and p.get("type") == "text").strip()
    text = without_thought(shown)
    details = _mapping(usage.get("completion_tokens_details"))
    apart = message.get("reasoning_content") or message.get("reasoning") or details.get("reasoning_tokens")
    cut = finish == "length" or text is None or bool(apart and not text)
    if not text and not cut:
        return _EMPTY
    answer = answer if isinstance(answer, int) else estimate_tokens(shown)
    thought = bool(apart or text != shown or not text)
    return Reply(text or "", not cut, prompt, answer, max(1, answer - estimate_tokens(text or "")) if thought else 0)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def without_thought(text: str) -> str | None:
    """The answer behind the thought that a model wrote before it; None if the thought does not end."""
    while True:
        opened, closed = _THOUGHT.match(text.lstrip()), _THOUGHT_END.search(text)
        if closed is None:
            return None if opened else text
        if opened is None and _THOUGHT.search(text, 0, closed.start()):
            return text
        text = text[closed.end() :].strip()
        if answer := re.fullmatch(r"<answer>(.*?)(?:</answer>)?", text, re.DOTALL):
            text = answer[1].strip()


def _asked_pause(header: str) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or as a date; None without one that makes sense."""
    seconds = math.nan
    with suppress(ValueError, OverflowError):
        seconds = parsedate_to_datetime(header).timestamp() - time.time()
    with suppress(ValueError):
        seconds = float(header)
    return min(max(seconds, 0.0), LONGEST_WAIT_ASKED) if math.isfinite(seconds) else None
