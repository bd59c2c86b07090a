"""What the endpoint is told at its start, and who may talk to it."""

from __future__ import annotations

import hmac
import ipaddress
import os
from dataclasses import dataclass
from pathlib import Path

from tabdiff.errors import ConfigError

_LEAST_KEY = 16
KEY_VARIABLES = ("TABDIFF_API_KEY", "TABDIFF_API_KEY_FILE")


@dataclass(frozen=True)
class ServeOptions:
    """Limits and addresses of the endpoint.

    Attributes:
        host, port: where to listen.
        api_key: what a caller must show; None only on a loopback address.
        max_rows: rows in one request, given or asked for.
        max_bytes: of one request's body.
        max_waiting: requests that may wait; more are told to come back later.
        batch_rows: rows that are scored together at most.
        batch_wait: seconds that a batch waits for more rows. With 0 it takes those that came while the last one ran.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    api_key: str | None = None
    max_rows: int = 10_000
    max_bytes: int = 16_000_000
    max_waiting: int = 256
    batch_rows: int = 1024
    batch_wait: float = 0.0

    def __post_init__(self) -> None:
        if self.api_key is not None and len(self.api_key) < _LEAST_KEY:
            raise ConfigError(
                f"an API key has at least {_LEAST_KEY} characters; got {len(self.api_key)}. Example: openssl rand -hex 32"
            )
        if self.api_key is None and not is_loopback(self.host):
            raise ConfigError(
                f"an address that others reach needs an API key; got host {self.host!r} and none of {', '.join(KEY_VARIABLES)}. "
                "Set one, or listen on 127.0.0.1."
            )

    def allows(self, shown: str | None) -> bool:
        """Whether the caller showed the key; takes as long for a wrong one as for the right one."""
        if self.api_key is None:
            return True
        return hmac.compare_digest((shown or "").encode(), self.api_key.encode())


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches the address. A name other than localhost may resolve to anything."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def key_from_environment() -> str | None:
    """The key in TABDIFF_API_KEY, or in the file that TABDIFF_API_KEY_FILE names; never an argument, which others can see.

    Raises:
        ConfigError: both are set, or the file cannot be read or is empty.
    """
    key, file = (os.environ.get(name) or None for name in KEY_VARIABLES)
    if key and file:
        raise ConfigError(f"one place holds the API key; got both {' and '.join(KEY_VARIABLES)}. Unset one of them.")
    if file is None:
        return key
    try:
        found = Path(file).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{KEY_VARIABLES[1]} names a file with the API key; cannot read {file!r} ({error})."
        ) from error
    if not found:
        raise ConfigError(f"{KEY_VARIABLES[1]} names a file with the API key; {file!r} is empty.")
    return found
