"""Lets only pages of this machine talk to the demo's server.

The server listens to this machine alone. But a web page in the same browser can send requests to it, and a name that
its owner lets point to 127.0.0.1 makes them look as if they were of the same site. The headers ``Host``, ``Origin``
and ``Sec-Fetch-Site`` show both.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from typing import Any, TypeAlias
from urllib.parse import urlsplit

Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

LOCAL_NAMES = ("127.0.0.1", "localhost", "::1")
"""What this machine calls itself; any port, since a tunnel may have another."""

MAX_UPLOAD = 2 * 2**30
"""Bytes of an uploaded file, at most."""


def refusal(headers: Mapping[str, str]) -> str | None:
    """Return why a request is refused, by its headers with names in lower case; None where it is not."""
    host = headers.get("host", "")
    if _name(f"//{host}") not in LOCAL_NAMES:
        return "the page is served to 127.0.0.1 and localhost only"
    origin = headers.get("origin")
    if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
        return "the request comes from another site"
    if headers.get("sec-fetch-site") == "cross-site" and headers.get("sec-fetch-mode") != "navigate":
        return "the request comes from another site"
    return None


def _name(address: str) -> str | None:
    try:
        return urlsplit(address).hostname
    except ValueError:
        return None


class LocalPagesOnly:
    """An ASGI application before another one, which answers 403 where :func:`refusal` has a reason.

    Args:
        app: what it stands before.
    """

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope.get("headers", ())}
        reason = refusal(headers) if scope["type"] in ("http", "websocket") else None
        if reason is None:
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008, "reason": reason})
        else:
            plain = [(b"content-type", b"text/plain; charset=utf-8")]
            await send({"type": "http.response.start", "status": 403, "headers": plain})
            await send({"type": "http.response.body", "body": f"{reason}\n".encode()})
