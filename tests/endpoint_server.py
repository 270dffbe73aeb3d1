"""An OpenAI-compatible server that misbehaves to order, in a process of its own.

Usage: python endpoint_server.py LOG BEHAVIOUR... It prints its address. The first requests meet the behaviours in turn,
all later ones the last of them; every request is written to LOG as a line of JSON before it is answered.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

BEHAVIOURS = sys.argv[2:] or ["ok"]
lock = threading.Lock()
count = 0


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        global count
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with lock:
            behaviour = BEHAVIOURS[min(count, len(BEHAVIOURS) - 1)]
            count += 1
            record = {"at": time.time(), "path": self.path, "key": self.headers["Authorization"], "body": body}
            record["idempotency"] = self.headers["Idempotency-Key"]
            with Path(sys.argv[1]).open("a", encoding="utf-8") as log:
                log.write(json.dumps(record) + "\n")
        name, _, argument = behaviour.partition(":")
        asked = body["messages"][-1]["content"]
        text = asked if isinstance(asked, str) else "A red ball is on the left."
        if name in ("slow", "ok"):
            time.sleep(float(argument or 0))
            self.reply(text)
        elif name == "say":
            self.reply(argument)
        elif name == "find":  # a judge who looks for a word
            self.reply("yes\nIt is there." if argument in str(asked) else "no\nIt is not there.")
        elif name == "new":  # a model that takes neither max_tokens nor a temperature, as OpenAI's do
            refused = next((key for key in ("max_tokens", "temperature") if key in body), None)
            error = {"message": f"Unsupported parameter: '{refused}'.", "param": refused, "code": "unsupported_value"}
            self.send(400, json.dumps({"error": error})) if refused else self.reply(text)
        elif name == "think":  # a model that needs so many tokens to think
            enough = body.get("max_tokens", body.get("max_completion_tokens")) > int(argument)
            self.reply("<think>Hm." + "</think>\n\nyes" * enough, finish="stop" if enough else "length")
        elif name == "raw":
            self.send(200, argument)
        elif name == "error":
            status, _, message = argument.partition(",")
            self.send(int(status), json.dumps({"error": {"message": message}}))
        elif name == "length":
            self.reply(text, finish="length")
        elif name == "hang":
            time.sleep(float(argument))
            self.close_connection = True
        elif name == "status":
            status, _, after = argument.partition(",")
            headers = {"Retry-After": after} if after else {}
            # Some servers tell the key that they were given; nobody may repeat it.
            self.send(int(status), json.dumps({"error": {"message": f"bad {self.headers['Authorization']}"}}), headers)
        elif name == "html":
            self.send(200, "<html>proxy login</html>", {"Content-Type": "text/html"})
        elif name == "json":
            self.send(200, '{"choices": []}')
        elif name == "nonsense":
            self.send(200, '{"choices": [{"message"')
        elif name == "empty":
            self.reply("")
        elif name == "cut":
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", "5000")
            self.end_headers()
            self.wfile.write(b'{"choices": [{"message": {"content": "A red')
            self.wfile.flush()
            self.close_connection = True

    def reply(self, text: str, finish: str = "stop") -> None:
        usage = {"prompt_tokens": 20, "completion_tokens": 10, "total_tokens": 30}
        choice = {"index": 0, "finish_reason": finish, "message": {"role": "assistant", "content": text}}
        self.send(200, json.dumps({"id": "1", "object": "chat.completion", "choices": [choice], "usage": usage}))

    def send(self, status: int, body: str, headers: dict[str, str] | None = None) -> None:
        data = body.encode()
        self.send_response(status)
        for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args: object) -> None:
        pass


server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
server.daemon_threads = True
print(f"http://127.0.0.1:{server.server_address[1]}/v1", flush=True)
threading.Thread(target=server.serve_forever, daemon=True).start()
sys.stdin.read()
