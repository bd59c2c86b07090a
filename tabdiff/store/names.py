"""Strings from users: names that may become part of a path, and references to secrets."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlsplit

from tabdiff.errors import StoreError

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")
_LONGEST_SECRET = 65_536


def check_name(name: str, what: str) -> str:
    """The name itself if it is one.

    Raises:
        StoreError: it holds anything but small letters, digits, - and _, starts with - or _, or is longer than 63.
    """
    if not _NAME.fullmatch(name):
        raise StoreError(
            f"the name of a {what} has 1 to 63 of a-z 0-9 - _ and starts with a letter or digit; got {name!r}. Rename it."
        )
    return name


def is_reference(value: str) -> bool:
    """Whether the value says where a secret is, instead of being one."""
    return value.startswith(("env:", "file:"))


def resolve(value: str) -> str:
    """What a reference `env:NAME` or `file:PATH` stands for; any other value is itself.

    Raises:
        StoreError: the variable or file is missing, empty or too long. The message never holds the secret.
    """
    kind, colon, where = value.partition(":")
    if not colon or kind not in ("env", "file"):
        return value
    if kind == "env":
        if not _VARIABLE.fullmatch(where):
            raise StoreError(f"env:NAME names an environment variable; got {value!r}. Example: env:SHOP_DATABASE_URL")
        found = os.environ.get(where, "")
        if not found:
            raise StoreError(
                f"{value}: the environment variable {where} must be set where tabdiff runs; it is not. Set it."
            )
        return found
    path = Path(where)
    try:
        text = path.read_text(encoding="utf-8") if path.stat().st_size <= _LONGEST_SECRET else None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise StoreError(
            f"{value}: the file must be readable; found: {reason}. Check the path and the rights."
        ) from None
    if text is None or not text.strip():
        raise StoreError(f"{value}: the file must hold the secret; it is empty or larger than 64 KiB. Write it again.")
    return text.strip()


def refuse_inline_password(url: str) -> None:
    """Refuse a URL that holds a password, as what is registered is stored in clear.

    Raises:
        StoreError: there is a password in the URL, or it does not say where one ends.
    """
    try:
        parts = urlsplit(url)
        found = parts.password is not None or bool(parts.query) or "@" in parts.path
    except ValueError:
        found = True
    if found:
        raise StoreError(
            "a registered URL must hold no password and no parameters, as it is stored in clear; found some. "
            "Put the URL into an environment variable or a file and register env:NAME or file:PATH."
        )


def redact(message: str, url: str) -> str:
    """A message of a driver without what the URL holds."""
    try:
        parts = urlsplit(url)
        secrets = {url, parts.password or "", parts.query}
    except ValueError:
        secrets = {url}
    for secret in secrets - {""}:
        message = message.replace(secret, "***")
    return re.sub(r"://[^@\s]+@", "://***@", " ".join(message.split()))
