"""Streamlit's own files from memory, compressed once.

A browser that comes for the first time asks for some seventy small files before anything is drawn. Streamlit opens each of them in a thread and sends it uncompressed;
here each is read and compressed once. Names of these files hold a hash of their content, so browsers keep them for good. The pages' document also names the
parts that tables and charts need, so that browsers fetch them while nothing else is to be done.
"""

from __future__ import annotations

import asyncio
import gzip
import mimetypes
import re
from pathlib import Path

import streamlit
from starlette.types import ASGIApp, Receive, Scope, Send

_ROOT = Path(streamlit.__file__).parent / "static"
_PAGES = Path(__file__).parent / "pages"
_TEXT = (".js", ".css", ".svg", ".json", ".html")
_LEAST = 500  # bytes from which compressing pays
_MOST_KEPT = 48 * 2**20  # bytes in memory
_FIRST = ("Metric", "Html", "PageLink", "ImageList")
_LATER = ("DataFrame", "ArrowVegaLiteChart", "ButtonGroup", "Selectbox", "Button", "Popover", "TextArea", "Tabs")
_NEEDS = re.compile(r'(?:from|import)"\./([\w.-]+\.js)"')
_NAMED = re.compile(r'(?:src|href)="\./(static/[\w./-]+)"')
_FOR_GOOD = (b"cache-control", b"public, immutable, max-age=31536000")
_ASK_AGAIN = (b"cache-control", b"no-cache")


class Shelf:
    """The files and documents there are, and those that are in memory."""

    def __init__(self, root: Path = _ROOT) -> None:
        self.root = root
        self.files = {f"/{path.relative_to(root).as_posix()}": path for path in (root / "static").rglob("*.*")}
        self.documents = {"/", *(f"/{path.stem}" for path in _PAGES.glob("[a-z]*.py"))}
        self._kept: dict[tuple[str, bool], bytes] = {}
        self._size = 0

    def kept(self, name: str, short: bool) -> bytes | None:
        """The bytes, if they are in memory."""
        return self._kept.get((name, short))

    def load(self, name: str, short: bool = True) -> bytes:
        """The bytes of a file or document, compressed if `short`, kept for the next one who asks."""
        content = self._document() if name in self.documents else self.files[name].read_bytes()
        body = gzip.compress(content, 6, mtime=0) if short else content
        if (name, short) not in self._kept and self._size + len(body) <= _MOST_KEPT:
            self._kept[name, short] = body
            self._size += len(body)
        return body

    def warm(self) -> None:
        """Have everything ready that a first visit asks for."""
        for name in dict.fromkeys([*_NAMED.findall(self._index()), *self._closure(_FIRST), *self._closure(_LATER)]):
            if f"/{name}" in self.files:
                self.load(f"/{name}", name.endswith(_TEXT))
        self.load("/")

    def _index(self) -> str:
        return (self.root / "index.html").read_text(encoding="utf-8")

    def _document(self) -> bytes:
        now, later = self._closure(_FIRST), self._closure(_LATER)
        hints = "".join(f'<link rel="modulepreload" crossorigin href="./{name}">' for name in now)
        hints += "".join(f'<link rel="prefetch" crossorigin href="./{name}">' for name in later if name not in now)
        return self._index().replace("</head>", f"{hints}</head>", 1).encode()

    def _closure(self, parts: tuple[str, ...]) -> list[str]:
        """The files of parts of the frontend with what they need; none that the document names anyway."""
        scripts = self.root / "static" / "js"
        known = set(_NAMED.findall(self._index()))
        wanted = [path.name for part in parts for path in scripts.glob(f"{part}.*.js")]
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
    """Answers for what is on the shelf; everything else goes on to `app`."""

    def __init__(self, app: ASGIApp, shelf: Shelf) -> None:
        self.app, self.shelf = app, shelf

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        name, shelf = scope.get("path", ""), self.shelf
        headers = dict(scope.get("headers", ()))
        document = name in shelf.documents
        ours = scope["type"] == "http" and scope["method"] == "GET" and b"range" not in headers
        if not ours or not (document or name in shelf.files):
            await self.app(scope, receive, send)
            return
        short = b"gzip" in headers.get(b"accept-encoding", b"") and (document or name.endswith(_TEXT))
        kept = shelf.kept(name, short)
        body = await asyncio.to_thread(shelf.load, name, short) if kept is None else kept
        kind = "text/html; charset=utf-8" if document else mimetypes.guess_type(name)[0] or "application/octet-stream"
        answer = [(b"content-type", kind.encode()), (b"content-length", str(len(body)).encode())]
        answer += [(b"vary", b"accept-encoding"), _ASK_AGAIN if document else _FOR_GOOD]
        answer += [(b"content-encoding", b"gzip")] if short else []
        await send({"type": "http.response.start", "status": 200, "headers": answer})
        await send({"type": "http.response.body", "body": body})
