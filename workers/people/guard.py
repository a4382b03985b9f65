"""Who may ask: only a browser that was given the address with the token.

The page may be on a machine that others share, in a browser that visits other sites, which may
call it by any name that they make point here (DNS rebinding). So each request must name an address
that we listen at, whatever changes something must come from our own page, and everything needs the
cookie that the token was exchanged for.
"""

import secrets
from collections.abc import Collection
from urllib.parse import parse_qs

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import cookie_parser
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST_BODY_BYTES = 16 * 1024

_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


class Guard:
    """An ASGI application around another one, which is asked only what passes."""

    def __init__(self, app: ASGIApp, token: str, hosts: Collection[str], cookie: str) -> None:
        """hosts: "address:port", as the Host header may name us. cookie: its name."""
        self._app, self._token, self._hosts, self._cookie = app, token, hosts, cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.setdefault("cache-control", "no-store")
                headers.update(_HEADERS)
            await send(message)

        answer = self._refusal(scope) or self._exchange(scope)
        if answer is None and not self._knows(Headers(scope=scope).get("cookie", "")):
            answer = _said(403, "Open the address that the command printed: it holds a token.")
        await (answer or self._app)(scope, receive, send_with_headers)

    def _refusal(self, scope: Scope) -> Response | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "")
        if host not in self._hosts:
            return _said(421, "This page is not served under that name.")
        if scope["method"] not in ("GET", "HEAD"):
            if headers.get("origin") != f"http://{host}":
                return _said(403, "This did not come from the page itself.")
            length = headers.get("content-length", "")
            if not (length.isascii() and length.isdigit()):
                return _said(411, "Say how long the body is.")
            if int(length) > MOST_BODY_BYTES:
                return _said(413, f"At most {MOST_BODY_BYTES:,} bytes.")
        return None

    def _exchange(self, scope: Scope) -> Response | None:
        """A cookie for the token; without it, the address can be shown and kept."""
        (token, *_) = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])
        if scope["path"] != "/" or not self._is_token(token):
            return None
        answer = RedirectResponse("/", 303)
        answer.set_cookie(self._cookie, self._token, httponly=True, samesite="strict")
        return answer

    def _knows(self, cookies: str) -> bool:
        return self._is_token(cookie_parser(cookies).get(self._cookie, ""))

    def _is_token(self, text: str) -> bool:
        return secrets.compare_digest(text.encode(), self._token.encode())


def _said(status: int, text: str) -> Response:
    return PlainTextResponse(f"{text}\n", status)
