"""Only pages of this machine reach the demo's server; what is uploaded is gone when it is not needed."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from src.demo.guard import LocalPagesOnly, refusal
from src.demo.inputs import keep_upload

HERE = {"host": "127.0.0.1:7860"}


@pytest.mark.parametrize(
    "headers",
    [
        HERE, {"host": "localhost:8000", "origin": "http://localhost:8000"}, {"host": "[::1]:7860"},
        {**HERE, "sec-fetch-site": "same-origin"},
        {**HERE, "sec-fetch-site": "cross-site", "sec-fetch-mode": "navigate"},
    ],
)  # fmt: skip
def test_pages_of_this_machine_are_served(headers):
    assert refusal(headers) is None


@pytest.mark.parametrize(
    "headers",
    [
        {}, {"host": ""}, {"host": "evil.example:7860"}, {"host": "127.0.0.1.evil.example"}, {"host": "[::1"},
        {"host": "localhost@evil.example"}, {**HERE, "origin": "https://evil.example"}, {**HERE, "origin": "null"},
        {**HERE, "origin": "http://127.0.0.1:9000"}, {**HERE, "sec-fetch-site": "cross-site", "sec-fetch-mode": "cors"},
        {**HERE, "sec-fetch-site": "cross-site"},
    ],
)  # fmt: skip
def test_others_are_refused(headers):
    assert refusal(headers)


def answer(kind: str, host: bytes) -> list[dict[str, Any]]:
    """What is sent back to a request."""
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "served"})

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        raise AssertionError("nothing of a refused request is read")

    asyncio.run(LocalPagesOnly(app)({"type": kind, "headers": [(b"Host", host)]}, receive, send))
    return sent


def test_a_refused_request_does_not_reach_the_page():
    assert answer("http", b"localhost") == answer("lifespan", b"evil") == [{"type": "served"}]
    start, body = answer("http", b"evil.example")
    assert start["status"] == 403 and b"localhost only" in body["body"]
    (closed,) = answer("websocket", b"evil.example")
    assert closed["type"] == "websocket.close"


def test_an_upload_is_kept_until_the_next_one(tmp_path):
    own = tmp_path / "session"
    for name in ("a.png", "b.png", "b.png"):
        uploaded = tmp_path / "uploads" / name
        uploaded.parent.mkdir(exist_ok=True)
        uploaded.write_bytes(name.encode())
        kept = keep_upload(uploaded, own)
        assert not uploaded.exists() and kept.name == name and kept.read_bytes() == name.encode()
        assert [path for path in own.rglob("*") if path.is_file()] == [kept]
