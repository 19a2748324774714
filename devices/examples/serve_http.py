"""Answer images over HTTP with the standard library alone: python serve_http.py BUNDLE

    curl --data-binary @photo.jpg http://localhost:8000/predict
    curl http://localhost:8000/healthz

One prediction at a time, few connections, bounded bodies, slow clients are cut off. It listens
on this machine only; others come through a web server with TLS.
"""

from __future__ import annotations

import argparse
import json
import os
import threading
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Dict

from edgecil_runtime import Classifier, RuntimeFault

MAX_BODY = 16_000_000
MAX_CONNECTIONS = 8


class Server(ThreadingHTTPServer):
    """Holds the one model; every connection is a thread, and there are only a few."""

    def __init__(self, port: int, classifier: Classifier) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.classifier = classifier
        self.one_at_a_time = threading.Lock()
        self.free = threading.BoundedSemaphore(MAX_CONNECTIONS)

    def process_request(self, request: Any, client_address: Any) -> None:
        if self.free.acquire(blocking=False):
            return super().process_request(request, client_address)
        request.sendall(b"HTTP/1.0 503 Busy\r\nRetry-After: 1\r\n\r\n")
        self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self.free.release()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    server: Server
    timeout = 10  # seconds that a client may keep us waiting

    def do_GET(self) -> None:
        """Say whether the service is alive, and with which model."""
        if self.path != "/healthz":
            return self.reply(404, {"error": "GET /healthz"})
        self.reply(200, {"model": self.server.classifier.manifest.directory_name})

    def do_POST(self) -> None:
        """Predict the image file in the body."""
        length = self.headers.get("Content-Length", "")
        if self.path != "/predict":
            return self.reply(404, {"error": "POST /predict"})
        if not length.isdigit() or int(length) > MAX_BODY:
            return self.reply(413, {"error": f"Content-Length must be at most {MAX_BODY}"})
        # A file in memory: one on an SD card would wear it out.
        with os.fdopen(os.memfd_create("image"), "wb") as file:
            file.write(self.rfile.read(int(length)))
            file.flush()
            try:
                with self.server.one_at_a_time:
                    found = self.server.classifier.predict(f"/proc/self/fd/{file.fileno()}")
            except RuntimeFault as fault:
                return self.reply(400, {"error": fault.message})
        self.reply(200, {"label": found.label, "score": found.score})

    def reply(self, status: int, answer: Dict[str, Any]) -> None:
        """Send a JSON object and close the connection."""
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(json.dumps(answer).encode() + b"\n")


def main() -> None:
    """Serve until Ctrl-C."""
    parser = argparse.ArgumentParser(description="Answer images over HTTP.")
    parser.add_argument("bundle")
    parser.add_argument("--port", type=int, default=8000, help="0 for any that is free (8000)")
    options = parser.parse_args()
    classifier = Classifier(options.bundle, memory_limit="128MB")
    with Server(options.port, classifier) as server, suppress(KeyboardInterrupt):
        print(f"http://127.0.0.1:{server.server_port}", flush=True)
        server.serve_forever()


if __name__ == "__main__":
    main()
