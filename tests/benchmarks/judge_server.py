"""An OpenAI-compatible endpoint for tests: a real process on 127.0.0.1 that answers by rule and breaks on request.

Run as a script, it prints its port. Every POST is one line of the file that LOG names. The question's text decides:
information points are the words behind 内容 or Text, matches are equal words, a score is the digit behind “score=”.
FAULTS (a JSON list) is what the first requests get instead: a status, "timeout", "garbage", "empty", "drop", "html",
"together" (the answer, once three requests have come), "drip" (a byte at a time, for five minutes), "deep" and
"surrogate" (an answer), "deep body", "list" (no text) or "null".
"""

import json
import os
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

FAULTS = json.loads(os.environ.get("FAULTS", "[]"))
THREE = threading.Barrier(3)


def answer(question: str) -> str:
    if "信息点对" in question or "pairs of points" in question:
        _, reference, given = re.split(r"(?:参考：|Reference:|\n\n回答：|\n\nAnswer:)\n", question)
        left, right = (re.findall(r"\d+\. (.*)", side) for side in (reference, given))
        matches = [
            {"reference": i + 1, "answer": right.index(point) + 1, "quality": 1}
            for i, point in enumerate(left)
            if point in right
        ]
        return "```json\n" + json.dumps({"matches": matches}) + "\n```"
    if "信息点" in question or "information points" in question:
        words = re.split("(?:内容：|Text:)\n", question)[-1].split()
        return json.dumps({"points": [{"point": w, "importance": min(5, len(w))} for w in words]})
    found = re.search(r"score=(\S+)", question)
    return "<think>想一想</think>" + json.dumps({"score": int(found[1]) if found else 4, "why": "好"})


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with open(os.environ["LOG"], "a") as log:
            log.write(json.dumps(body, ensure_ascii=False) + "\n")
        fault = FAULTS.pop(0) if FAULTS else None
        if fault == "timeout":
            self.connection.settimeout(30)
            self.connection.recv(1)  # says nothing until the other side has given up
            self.close_connection = True
            return
        if fault == "together":
            THREE.wait(600)
        if fault == "drop":
            self.close_connection = True
            return
        status = fault if isinstance(fault, int) else 200
        if fault == "drip":
            self.send_response(200)
            self.send_header("Content-Length", "100000")
            self.end_headers()
            for _ in range(3000):
                self.wfile.write(b" ")
                time.sleep(0.1)
        deep = "[" * 100_000
        cut = '{"score": 4, "why": "\ud83d"}'
        text = {"garbage": "我不知道", "empty": "", "deep": deep, "surrogate": cut, "list": [1]}.get(
            fault, answer(body["messages"][0]["content"])
        )
        value = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": text}}],
            "usage": {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110},
        }
        bodies = {"html": b"<html>busy</html>", "deep body": deep.encode(), "null": b"null"}
        data = bodies.get(fault) or json.dumps(value).encode()
        self.send_response(status)
        if status == 429:
            self.send_header("Retry-After", "0")
        self.send_header("Content-Type", "text/html" if fault == "html" else "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_address[1])
    sys.stdout.flush()
    server.serve_forever()
