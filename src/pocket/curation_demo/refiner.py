"""A small refiner for demos and tests: an OpenAI-compatible server whose "LLM" is a handful of editing rules.

It sees a text and nothing else: no picture, no truth. It drops what was said before, stray markup, list and recipe
marks, and pieces that break off or are no sentence; it starts sentences with a capital and ends them with a full stop.
Run as `python -m pocket.curation_demo.refiner`; prints the address that it listens on. Standard library only.
"""

import json
import re
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from minigpt4.curation.language import is_whole, sentences
from minigpt4.text_failures import failure, words

MODEL = "rule-based-mender"
_MARKS = re.compile(r"</?\w+[^<>\n]*>|^\s*(?:[-*•]|\d+[.)])\s*|^\s*Steps:.*$", re.M)
_PICTURE_TALK = re.compile(r"(?i)^(?:there is no|i see nothing|steps)\b")
_VERB = re.compile(r"\b(?:is|are|was|were|has|shows?|holds?|can|stands?|lies?|covers?|rolls?|meets?|frames?|contains?|"
                   r"looks?|gives?|folds?|surrounds?|stretch(?:es)?|see|are)\b")  # fmt: skip


def mend(text: str) -> str:
    """The text with its sentences said once, whole and clean; the text as it is if nothing would be left of it."""
    clean = _MARKS.sub(" ", text)
    kept: list[str] = []
    said: set[str] = set()
    known: set[str] = set()
    for start, end in sentences(clean):
        sentence = " ".join(clean[start:end].split()).strip(" ,;:-")
        spoken = words(sentence)
        told = " ".join(spoken)
        if not spoken or told in said or not _is_sentence(sentence):
            continue
        if kept and set(spoken) <= known and len(kept) > 1:
            continue  # says nothing that was not said
        said.add(told)
        known |= set(spoken)
        kept.append(sentence[0].upper() + sentence[1:])
    return " ".join(kept) or text


def _is_sentence(sentence: str) -> bool:
    """Whether it opens like a sentence, has a verb, comes to an end, and speaks of the picture."""
    if not is_whole(sentence) or failure(sentence, True) is not None:
        return False
    return len(words(sentence)) >= 3 and bool(_VERB.search(sentence)) and not _PICTURE_TALK.match(sentence)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        try:
            asked = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))))
            text = str(asked["messages"][-1]["content"])
        except (ValueError, LookupError, TypeError):
            self._answer(400, {"error": {"message": "not a chat request"}})
            return
        mended = mend(text)
        usage = {"prompt_tokens": sum(len(str(m.get("content"))) for m in asked["messages"]) // 4}
        usage["completion_tokens"] = len(mended) // 4
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": mended}}
        self._answer(200, {"object": "chat.completion", "model": MODEL, "choices": [choice], "usage": usage})

    def _answer(self, status: int, value: dict[str, Any]) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        pass


def main() -> None:
    """Serve on a free port of the loopback address until the process is ended or its standard input is closed."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    print(f"http://127.0.0.1:{server.server_address[1]}/v1", flush=True)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    sys.stdin.read()  # ends when the process that started this one does, however it ends


if __name__ == "__main__":
    main()
