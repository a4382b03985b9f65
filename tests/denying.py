"""An S3 server that can be made read-only while it runs: a proxy before a real one."""

import http.client
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

DENIED = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>AccessDenied</Code>'
    b"<Message>Access Denied.</Message><Resource>/</Resource></Error>"
)


class ReadOnly:
    """Whether writes are refused now, how many were, and where the proxy listens."""

    def __init__(self) -> None:
        self.on, self.denied, self.address = False, 0, ""


@contextmanager
def denying(port: int) -> Iterator[ReadOnly]:
    """Passes everything on to the server at this port, but for writes while it is read-only.

    The Host header stays as the client signed it.
    """
    state = ReadOnly()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def handle_any(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            if state.on and self.command in ("PUT", "POST", "DELETE"):
                state.denied += 1
                self._answer(403, [("content-type", "application/xml")], DENIED)
                return
            to = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
            to.request(self.command, self.path, body, dict(self.headers))
            got = to.getresponse()
            data = got.read()
            skip = {"transfer-encoding", "connection", "content-length"}
            headers = [(k, v) for k, v in got.getheaders() if k.lower() not in skip]
            length = got.getheader("content-length") if self.command == "HEAD" else None
            self._answer(got.status, headers, data, length)
            to.close()

        def _answer(
            self,
            status: int,
            headers: list[tuple[str, str]],
            data: bytes,
            length: str | None = None,
        ) -> None:
            self.send_response_only(status)
            for name, value in headers:
                self.send_header(name, value)
            self.send_header("content-length", length or str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_PUT = do_POST = do_DELETE = do_HEAD = handle_any  # noqa: N815

        def log_message(self, format: str, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.address = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield state
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
