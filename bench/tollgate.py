"""An S3 server's double that counts: what it is asked, by verb and kind, and how many bytes.

It stands before a real server, one for each process whose requests are to be told apart, and
passes everything on as it came: signatures stay valid, for the Host header does.
"""

import http.client
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

_HOPS = {"connection", "keep-alive", "transfer-encoding", "content-length"}


class Tollgate:
    """A server on a free port of loopback. counts: requests by "PUT images" and the like."""

    def __init__(self, upstream_port: int) -> None:
        self.counts: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()  # bodies, both ways, by the same names
        gate, local = self, threading.local()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if not hasattr(local, "upstream"):
                    local.upstream = http.client.HTTPConnection("127.0.0.1", upstream_port)
                upstream: http.client.HTTPConnection = local.upstream
                upstream.putrequest(
                    self.command, self.path, skip_host=True, skip_accept_encoding=True
                )
                for name, value in self.headers.items():
                    if name.lower() not in _HOPS:
                        upstream.putheader(name, value)
                upstream.putheader("Content-Length", str(len(body)))
                upstream.endheaders(body)
                answer = upstream.getresponse()
                content = answer.read()
                name = _name(self.command, self.path)
                gate.counts[name] += 1
                gate.bytes[name] += len(body) + len(content)
                self.send_response_only(answer.status, answer.reason)
                length = answer.headers.get("Content-Length", "0")
                for key, value in answer.headers.items():
                    if key.lower() not in _HOPS:
                        self.send_header(key, value)
                head = self.command == "HEAD"
                self.send_header("Content-Length", length if head else str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_PUT = do_HEAD = do_DELETE = do_POST = handle_any  # noqa: N815

            def log_message(self, *arguments: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port: int = self._server.server_address[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._server.server_close()


def _name(verb: str, path: str) -> str:
    """ "GET images", "LIST prompts": the kind is the third part of a run's key."""
    parts = urlsplit(path)
    query = parse_qs(parts.query)
    key = parts.path.strip("/").partition("/")[2]  # behind the bucket
    if not key:
        verb = "LIST" if "prefix" in query else f"{verb} bucket"
        key = query.get("prefix", [""])[0]
    kind = [*key.split("/"), "", "", ""][2].partition(".")[0]
    return f"{verb} {kind}".strip()
