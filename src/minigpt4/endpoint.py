"""An OpenAI-compatible endpoint that may misbehave: one question in, one whole answer out, or one line that says why.

The client library speaks the protocol; what is added here is patience. Whatever may pass (no connection, a timeout,
408, 409, 429, 5xx, an answer that is cut or makes no sense) is tried again after a pause that grows, with jitter, or
that the server asked for. What will not pass (a wrong key, an unknown model) ends the work at once. The key is read
from the environment, and nothing here returns or prints it.
"""

from __future__ import annotations

import base64
import itertools
import json
import logging
import math
import os
import random
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

from minigpt4.errors import UserError
from minigpt4.local_web import LOOPBACK
from minigpt4.stopping import StopSignals

logger = logging.getLogger(__name__)
T = TypeVar("T")
R = TypeVar("R")

#: Where the key is looked for; a local endpoint needs none.
KEY_VARIABLE = "OPENAI_API_KEY"
FIRST_PAUSE, LONGEST_PAUSE, LONGEST_WAIT_ASKED = 0.5, 30.0, 300.0
_PASSING = {408, 409, 425, 429}


_EMPTY = "an empty answer"


class Unanswered(Exception):  # noqa: N818 - the endpoint's fault, not an error here
    """The endpoint gave no usable answer, however often it was asked. `tokens` were paid for, as far as is known.

    `empty` says that it did answer, with nothing: this is what its model has to say.
    """

    def __init__(self, reason: str, tokens: int = 0) -> None:
        super().__init__(reason)
        self.tokens = tokens
        self.empty = reason == _EMPTY


@dataclass(frozen=True)
class Reply:
    """An answer. `ended` is False if the endpoint cut it off at the limit; `tokens` counts prompt and answer."""

    text: str
    ended: bool
    prompt_tokens: int
    answer_tokens: int

    @property
    def tokens(self) -> int:
        return self.prompt_tokens + self.answer_tokens


def estimate_tokens(text: str) -> int:
    """About how many tokens an LLM cuts an English `text` into: one for every four characters."""
    return math.ceil(len(text) / 4)


def split_address(url: str) -> tuple[str, str, str | None]:
    """(the address without them, user, password) of an endpoint's base URL; a user alone is a key.

    Raises UserError, which shows nothing of them, for what is no base URL.
    """
    try:
        parts = urlsplit(url)
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
        netloc = f"{host}:{parts.port}" if parts.port is not None else host
    except ValueError:  # an impossible port: perhaps a password with a / in it
        netloc = None
    if not netloc or parts.scheme not in ("http", "https") or parts.query or parts.fragment or "@" in parts.path:
        raise UserError(
            "the endpoint's address is no base URL such as http://localhost:8000/v1 (write : / @ ? # in a user or "
            "password as %3A %2F %40 %3F %23)"
        )
    password = None if parts.password is None else unquote(parts.password)
    return parts._replace(netloc=netloc).geturl(), unquote(parts.username or ""), password


class Endpoint:
    """An endpoint and the model that it is asked for. Safe to use from several threads.

    Args:
        url: The base, as in `http://localhost:8000/v1`. `http://USER:PASSWORD@host/v1` signs in so, and
            `http://KEY@host/v1` is a key in place of the environment's; both are kept out of `self.url`.
        timeout: Seconds for one attempt.
        attempts: How often one question is asked at most.
    Raises:
        UserError: the client library is not installed, or the key holds characters that no header can.
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
                http_client=openai.DefaultHttpxClient(trust_env=urlsplit(self.url).hostname not in LOOPBACK),
            )  # fmt: skip
        except Exception as error:  # httpx has several for proxy variables that it cannot use
            raise UserError(f"{self.url}: cannot be reached as the proxy variables say ({error})") from None
        self._random = random.Random()

    def ask(self, messages: Sequence[dict[str, Any]], *, max_tokens: int, temperature: float, name: str = "") -> Reply:
        """The answer to a conversation.

        `name` is sent as the idempotency key, so that a gateway that knows such keys charges a repeated question once.

        Raises:
            Unanswered: no usable answer after all attempts, or stopped.
            UserError: the endpoint refuses in a way that will not pass.
        """
        reason, paid = "stopped", 0
        for attempt in range(self.attempts):
            if self.stopped.is_set():
                break
            asked: float | None = None
            try:
                raw = self._client.chat.completions.with_raw_response.create(
                    model=self.model,
                    messages=list(messages),
                    max_tokens=max_tokens,
                    temperature=temperature,
                    extra_headers={"Idempotency-Key": name} if name else {},
                )
                reply = _read(raw.http_response.text)
                if isinstance(reply, Reply):
                    return reply
                reason, paid = reply, paid + _question_tokens(messages)
            except self._openai.APIStatusError as error:
                reason = f"HTTP {error.status_code}"
                if error.status_code not in _PASSING and error.status_code < 500:
                    raise UserError(self._refusal(error.status_code)) from None
                asked = _asked_pause(error.response.headers.get("retry-after"))
            except self._openai.APITimeoutError:
                reason = "timed out"
            except self._openai.APIConnectionError as error:
                reason = f"no connection, or it was cut ({error.__cause__ or error})"
            logger.debug("%s: %s, attempt %d of %d", self.url, reason, attempt + 1, self.attempts)
            if attempt + 1 < self.attempts:
                self.stopped.wait(self._pause(attempt) if asked is None else asked)
        raise Unanswered(reason, paid)

    def ask_each(
        self,
        tasks: Sequence[T],
        work: Callable[[T], R],
        record: Callable[[T, R | Unanswered], bool | None],
        concurrency: int,
    ) -> None:
        """`record(task, work(task))` for all tasks, at most `concurrency` of them at work at once.

        `record` runs in the caller's thread as soon as its result is there; it returns False to stop. If `work` raises
        Unanswered, `record` gets that. What is under way when the work stops is waited for and recorded too: it may
        have been paid.

        Raises:
            UserError: as many answers in a row as are asked for at once (at least three), or all of them, failed.
            KeyboardInterrupt: Ctrl-C or SIGTERM.
            Exception: another one that `work` raised.
        """
        waiting, running = iter(tasks), dict[Future[R], T]()
        failed, most = list[str](), max(3, concurrency)
        going, trouble = True, None
        self.stopped.clear()
        with StopSignals() as stop, ThreadPoolExecutor(concurrency, thread_name_prefix="minigpt4-ask") as pool:
            while running or (going and not stop.received):
                for task in itertools.islice(waiting, concurrency - len(running) if going and not stop.received else 0):
                    running[pool.submit(work, task)] = task
                if not running:
                    break
                ended = wait(running, timeout=0.2, return_when=FIRST_COMPLETED).done
                if stop.received:
                    self.stopped.set()
                for future in ended:
                    task, error = running.pop(future), future.exception()
                    if error is not None and not isinstance(error, Unanswered):
                        trouble, going = trouble or error, False
                        continue
                    failed = [*failed, str(error)] if error else []
                    if record(task, error or future.result()) is False or len(failed) >= most:
                        going = False
        if trouble is not None:
            raise trouble
        if stop.received:
            raise KeyboardInterrupt(STOPPED)
        if failed and len(failed) >= min(most, len(tasks)):
            raise UserError(
                f"endpoint {self.url}: {failed[-1]}; what was answered is recorded, run the same command again later"
            )

    def _pause(self, attempt: int) -> float:
        """Seconds before the next attempt: doubled each time, between half of it and all of it at random."""
        return min(LONGEST_PAUSE, FIRST_PAUSE * 2**attempt) * self._random.uniform(0.5, 1.0)

    def _refusal(self, status: int) -> str:
        """What a status means that will not pass. The server's own words are left out: some echo the key."""
        what = {
            400: "the request is malformed for it (is it a chat endpoint, and can its model read such prompts?)",
            401: f"the key is wrong or missing; set {KEY_VARIABLE} in the environment",
            403: f"the key in {KEY_VARIABLE} may not use this model",
            404: f"there is no such path or no model {self.model!r}; the base usually ends in /v1",
            413: "the request is too large for it",
        }.get(status, "it refuses the request")
        return f"endpoint {self.url}: HTTP {status}, {what}; what was answered before is recorded"


def _read(body: str) -> Reply | str:
    """The answer in a response's body, or what is wrong with it."""
    try:
        whole = json.loads(body)
        choice = whole["choices"][0]
        text = choice["message"]["content"]
    except (ValueError, LookupError, TypeError):
        return "an answer that is not in the protocol's JSON"
    if not isinstance(text, str) or not text.strip():
        return _EMPTY
    usage = whole.get("usage") if isinstance(whole.get("usage"), dict) else {}
    prompt, answer = usage.get("prompt_tokens"), usage.get("completion_tokens")
    return Reply(
        text.strip(),
        choice.get("finish_reason") != "length",
        prompt if isinstance(prompt, int) else 0,
        answer if isinstance(answer, int) else estimate_tokens(text),
    )


def _question_tokens(messages: Sequence[dict[str, Any]]) -> int:
    return sum(estimate_tokens(m["content"]) for m in messages if isinstance(m["content"], str))


def _asked_pause(header: str | None) -> float | None:
    """Seconds that a Retry-After header asks for, as a number or as a date; None without one that makes sense."""
    if header is None:
        return None
    from email.utils import parsedate_to_datetime

    try:
        seconds = float(header)
    except ValueError:
        from datetime import datetime, timezone

        try:
            seconds = (parsedate_to_datetime(header) - datetime.now(timezone.utc)).total_seconds()
        except (ValueError, TypeError):
            return None
    return min(max(seconds, 0.0), LONGEST_WAIT_ASKED) if math.isfinite(seconds) else None


#: What Ctrl-C prints when everything that came back is kept.
STOPPED = "stopped; what is done is recorded, and the same command goes on from there"
