"""Streamlit's own files from memory, compressed once.

A browser that comes for the first time asks for some seventy small files before anything is drawn. Streamlit opens each of them in a thread and sends it uncompressed;
here each is read and compressed once. Names of these files hold a hash of their content, so browsers keep them for good. The pages' document is ours: it names
what the first page needs, has that page's first view in it, and has what tables and charts need fetched when the page is drawn.
"""

from __future__ import annotations

import asyncio
import functools
import gzip
import json
import logging
import mimetypes
import re
from collections.abc import Callable
from pathlib import Path

import streamlit
from starlette.types import ASGIApp, Receive, Scope, Send

_ROOT = Path(streamlit.__file__).parent / "static"
_PAGES = Path(__file__).parent / "pages"
_SCRIPT = (Path(__file__).parent / "static" / "first.js").read_text(encoding="utf-8")
_OVERVIEW = "/"
_ITS_NAME = "/overview"  # which Streamlit does not know as an address, since the overview is the first page
_TEXT = (".js", ".css", ".svg", ".json", ".html")
_MOST_KEPT = 48 * 2**20  # bytes in memory
_FIRST = ("Metric", "Html", "PageLink", "ImageList")
_LATER = ("DataFrame", "ArrowVegaLiteChart", "ButtonGroup", "Selectbox", "Button", "Popover", "TextArea", "Tabs")
_NEEDS = re.compile(r'(?:from|import)"\./([\w.-]+\.js)"')
_NAMED = re.compile(r'(?:src|href)="\./(static/[\w./-]+)"')
_FOR_GOOD = (b"cache-control", b"public, immutable, max-age=31536000")
_NEVER = (b"cache-control", b"no-store")
_PATIENCE = 0.5  # seconds that a document waits for its first view
_STYLES = re.compile(r'<link rel="stylesheet"[^>]*>')
_NOSCRIPT = re.compile(r"<noscript>.*?</noscript>", re.DOTALL)
_WITHOUT = "The dashboard needs JavaScript; only what its overview says at a glance is shown without."
_PLACE = '<div id="root"></div>'
_log = logging.getLogger("tabdiff.dashboard")


class Shelf:
    """The files and documents there are, and those that are in memory."""

    def __init__(self, root: Path = _ROOT) -> None:
        self.root = root
        self.files = {f"/{path.relative_to(root).as_posix()}": path for path in (root / "static").rglob("*.*")}
        self.documents = {_OVERVIEW, *(f"/{path.stem}" for path in _PAGES.glob("[a-z]*.py"))} - {_ITS_NAME}
        self._kept: dict[tuple[str, bool], bytes] = {}
        self._size = 0

    def kept(self, name: str, short: bool) -> bytes | None:
        """The bytes, if they are in memory."""
        return self._kept.get((name, short))

    def load(self, name: str, short: bool = True) -> bytes:
        """The bytes of a file, compressed if `short`, kept for the next one who asks."""
        content = self.files[name].read_bytes()
        body = gzip.compress(content, 6, mtime=0) if short else content
        if (name, short) not in self._kept and self._size + len(body) <= _MOST_KEPT:
            self._kept[name, short] = body
            self._size += len(body)
        return body

    def warm(self) -> None:
        """Have everything ready that a first visit asks for."""
        for name in dict.fromkeys([*_NAMED.findall(self._index), *self._closure(_FIRST), *self._closure(_LATER)]):
            if f"/{name}" in self.files:
                self.load(f"/{name}", name.endswith(_TEXT))
        self.document()

    def document(self, view: str = "") -> bytes:
        """The document of every page, with something to see until Streamlit has drawn it."""
        before, after = self._document
        return f"{before}{view}{after}".encode()

    @functools.cached_property
    def _index(self) -> str:
        return (self.root / "index.html").read_text(encoding="utf-8")

    @functools.cached_property
    def _document(self) -> tuple[str, str]:
        """What comes before the first view, and after it."""
        styles = "".join(_STYLES.findall(self._index))
        now = self._closure(_FIRST)
        later = [f"./{name}" for name in self._closure(_LATER) if name not in now]
        hints = "".join(f'<link rel="modulepreload" crossorigin href="./{name}">' for name in now)
        # Styles first: nothing is painted before they are there, and some seventy scripts would be asked for before them.
        page = (
            _STYLES.sub("", self._index)
            .replace("<head>", f"<head>{styles}", 1)
            .replace("</head>", f"{hints}</head>", 1)
        )
        page = _NOSCRIPT.sub(f"<noscript>{_WITHOUT}</noscript>", page, count=1)
        before, found, after = page.partition(_PLACE)
        return before, f"{found}<script>{_SCRIPT.replace('LATER', json.dumps(later))}</script>{after}"

    def _closure(self, parts: tuple[str, ...]) -> list[str]:
        """The files of parts of the frontend, each followed by what it needs; none that the document names anyway."""
        scripts = self.root / "static" / "js"
        known = set(_NAMED.findall(self._index))
        wanted = [path.name for part in reversed(parts) for path in scripts.glob(f"{part}.*.js")]
        found: list[str] = []
        while wanted:
            name = wanted.pop()
            if f"static/js/{name}" in known or not (scripts / name).is_file():
                continue
            known.add(f"static/js/{name}")
            found.append(f"static/js/{name}")
            wanted += _NEEDS.findall((scripts / name).read_text(encoding="utf-8"))
        return found


class Assets:
    """Answers for what is on the shelf; everything else goes on to `app`. `view` returns what the document of the overview shows first."""

    def __init__(self, app: ASGIApp, shelf: Shelf, view: Callable[[], str]) -> None:
        self.app, self.shelf, self.view = app, shelf, view

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        name, shelf = scope.get("path", ""), self.shelf
        headers = dict(scope.get("headers", ()))
        document = name in shelf.documents
        ours = scope["type"] == "http" and scope["method"] == "GET" and b"range" not in headers
        if ours and name == _ITS_NAME:
            await send({"type": "http.response.start", "status": 307, "headers": [(b"location", b"./")]})
            await send({"type": "http.response.body", "body": b""})
            return
        if not ours or not (document or name in shelf.files):
            await self.app(scope, receive, send)
            return
        short = b"gzip" in headers.get(b"accept-encoding", b"") and (document or name.endswith(_TEXT))
        if document:
            content = shelf.document(await self._first() if name == _OVERVIEW else "")
            body, kind, keep = gzip.compress(content, 6) if short else content, "text/html; charset=utf-8", _NEVER
        else:
            kept = shelf.kept(name, short)
            body = await asyncio.to_thread(shelf.load, name, short) if kept is None else kept
            kind, keep = mimetypes.guess_type(name)[0] or "application/octet-stream", _FOR_GOOD
        answer = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
        answer += [(b"vary", b"accept-encoding"), keep]
        answer += [(b"content-encoding", b"gzip")] if short else []
        await send({"type": "http.response.start", "status": 200, "headers": answer})
        await send({"type": "http.response.body", "body": body})

    async def _first(self) -> str:
        """The view, unless it takes so long that the page itself may be there before."""
        try:
            return await asyncio.wait_for(asyncio.to_thread(self.view), _PATIENCE)
        except TimeoutError:
            return ""
        except Exception:  # the document must come whatever happens; the page says what is wrong
            _log.exception("the first view is left out")
            return ""
