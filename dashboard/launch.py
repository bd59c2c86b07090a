"""Start Streamlit as this dashboard wants it: who can reach it is decided here, before anything listens."""

from __future__ import annotations

import ipaddress
import os
import sys
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from tabdiff.errors import ConfigError
from tabdiff.store import Workspace

_HERE = Path(__file__).parent
_LOOPBACK = ("localhost", "127.0.0.1", "::1")
_OIDC = ("redirect_uri", "cookie_secret", "client_id", "client_secret", "server_metadata_url")


def start(
    *,
    host: str = "127.0.0.1",
    port: int = 8501,
    insecure: bool = False,
    allow_hosts: Sequence[str] = (),
    secrets: Path | None = None,
) -> NoReturn:
    """Become the dashboard of the workspace of TABDIFF_HOME; does not return.

    Args:
        host: address to listen on.
        port: port to listen on.
        insecure: listen beyond this machine although nobody has to sign in.
        allow_hosts: names under which browsers may reach it, beside loopback and `host`.
        secrets: TOML file with `[auth]` for OIDC and `[roles]`.

    Raises:
        ConfigError: the address is wider than loopback without sign-in, or the secrets are incomplete.
        StoreError: the workspace folder or database cannot be used.
    """
    arguments, environment = call(host, port, insecure, allow_hosts, secrets)
    Workspace.create()  # an empty one greets
    os.execve(sys.executable, arguments, environment)


def call(
    host: str, port: int, insecure: bool, allow_hosts: Sequence[str], secrets: Path | None
) -> tuple[list[str], dict[str, str]]:
    """Command line and environment of the server.

    Raises:
        ConfigError: the address is wider than loopback without sign-in, or the secrets are incomplete.
    """
    if secrets is not None:
        _check(secrets)
    wide = not _is_loopback(host)
    if wide and secrets is None and not insecure:
        raise ConfigError(
            f"listening on {host} lets others in, and nobody would have to sign in. Give --secrets FILE with [auth] for OIDC, "
            "put an authenticating proxy before 127.0.0.1, or say --insecure."
        )
    hosts = [*_LOOPBACK, *([] if host in ("0.0.0.0", "::") else [host]), *allow_hosts]
    if wide and host in ("0.0.0.0", "::") and not allow_hosts:
        raise ConfigError(
            f"listening on {host}: say under which names browsers reach it, as in --allow-host dash.example.org."
        )
    environment = dict(os.environ)
    if secrets is not None:
        environment["TABDIFF_DASHBOARD_AUTH"] = "oidc"
    else:
        environment.pop("TABDIFF_DASHBOARD_AUTH", None)
        environment.setdefault("TABDIFF_DASHBOARD_ROLE", "viewer" if wide else "admin")
    flags: list[tuple[str, Any]] = [("server.address", host), ("server.port", port)]
    flags += [("server.allowedHosts", name) for name in dict.fromkeys(hosts)]
    if secrets is not None:
        flags.append(("secrets.files", secrets.absolute()))
    command = [sys.executable, "-m", "streamlit", "run", str(_HERE / "server.py")]
    return [*command, *(f"--{name}={value}" for name, value in flags)], environment


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _check(secrets: Path) -> None:
    try:
        found = tomllib.loads(secrets.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"{secrets}: cannot be read as TOML ({error}). Write [auth] and [roles] into it.") from None
    missing = [name for name in _OIDC if not found.get("auth", {}).get(name)]
    if missing:
        raise ConfigError(f"{secrets}: [auth] needs {', '.join(_OIDC)}; missing: {', '.join(missing)}. Add them.")
    if not any(found.get("roles", {}).values()):
        raise ConfigError(f"{secrets}: [roles] says who is viewer, analyst or admin; it is empty. Nobody could look.")
    if secrets.stat().st_mode & 0o077:
        raise ConfigError(f"{secrets}: it holds secrets, and others may read it. Run chmod 600 {secrets}.")
