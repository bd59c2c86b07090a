"""The web server around the pages: it answers to known names only, and tells browsers not to be framed or to guess types."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import streamlit as st
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from streamlit.runtime.pages_manager import PagesManager
from streamlit.web.server.starlette.starlette_websocket import is_host_allowed
from uvicorn.protocols.http.auto import AutoHTTPProtocol

from dashboard import assets, first_view, warm

_HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "same-origin",
    "content-security-policy": "frame-ancestors 'none'; object-src 'none'; base-uri 'self'; form-action 'self'",
}


class Guard:
    """Refuses requests under unknown names, so that no other page can reach this one by a name it owns; adds headers."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)  # Streamlit checks the name of web sockets itself
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message.get("headers", []),
                    *((name.encode(), value.encode()) for name, value in _HEADERS.items()),
                ]
            await send(message)

        host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
        if not is_host_allowed(host):
            await answer({"type": "http.response.start", "status": 421, "headers": [(b"content-type", b"text/plain")]})
            await answer({"type": "http.response.body", "body": b"This server is not known under that name.\n"})
            return
        await self.app(scope, receive, answer)


def at_once(protocol: type[asyncio.Protocol]) -> None:
    """Make connections of a protocol send what is written at once.

    asyncio does so only for sockets made with the number of TCP, which those of Streamlit and uvicorn are not. Headers and body are written one after the other, so the kernel kept
    each body back until the browser had acknowledged the headers: .04 s for each of some seventy files of a first visit, and for each message after the first of a page.
    """
    before = protocol.connection_made

    def connection_made(self: asyncio.BaseProtocol, transport: asyncio.BaseTransport) -> None:
        connected = transport.get_extra_info("socket")
        if connected is not None and connected.family in (socket.AF_INET, socket.AF_INET6):
            connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        before(self, transport)

    protocol.connection_made = connection_made  # type: ignore[method-assign]


shelf = assets.Shelf()
at_once(AutoHTTPProtocol)


@asynccontextmanager
async def lifespan(_: st.App) -> AsyncIterator[None]:
    """Before it listens, and after."""
    await asyncio.gather(asyncio.to_thread(shelf.warm), asyncio.to_thread(warm.up))
    yield


# A folder named pages makes Streamlit run a page's file by itself when its address is opened first. Ours run inside app.py only,
# which asks who is there; every page asks again.
PagesManager.uses_pages_directory = False
app = st.App(
    Path(__file__).parent / "app.py",
    middleware=[Middleware(Guard), Middleware(assets.Assets, shelf=shelf, view=first_view.html)],
    lifespan=lifespan,
)
