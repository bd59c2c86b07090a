"""Who looks at the page, and what they may do. Hidden buttons protect nothing, so every action asks here.

With OIDC set up (`[auth]` in the secrets file) a person signs in, and `[roles]` of the same file says who is what:

    [roles]
    viewer = ["*@example.org"]
    analyst = ["ann@example.org"]
    admin = ["root@example.org"]

Without it there is nobody to ask: the role is that of TABDIFF_DASHBOARD_ROLE, which `dashboard.launch` sets.
"""

from __future__ import annotations

import fnmatch
import getpass
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, get_args

import streamlit as st

from tabdiff.errors import TabdiffError

Role = Literal["viewer", "analyst", "admin"]
ROLES: tuple[Role, ...] = get_args(Role)
_WHAT = {"viewer": "look", "analyst": "judge alerts and synthesize", "admin": "change thresholds, models and sources"}


class NotAllowedError(TabdiffError):
    """Somebody may not do what they asked for."""


def role_of(person: Mapping[str, Any], roles: Mapping[str, Any]) -> Role | None:
    """The highest role whose patterns match a signed-in person's address; None if there is none, or it is not verified."""
    address = str(person.get("email") or "").lower()
    if not address or person.get("email_verified", True) is not True:
        return None
    found: Role | None = None
    for role in ROLES:
        patterns = roles.get(role, ())
        given: Sequence[Any] = [patterns] if isinstance(patterns, str) else patterns
        if any(fnmatch.fnmatchcase(address, str(pattern).lower()) for pattern in given):
            found = role
    return found


def signs_in() -> bool:
    """Whether people sign in here."""
    return os.environ.get("TABDIFF_DASHBOARD_AUTH") == "oidc"


def role() -> Role | None:
    """What the person of this session may do; None if not even look."""
    if signs_in():
        if not st.user.is_logged_in:
            return None
        return role_of(st.user.to_dict(), st.secrets.get("roles", {}))
    given = os.environ.get("TABDIFF_DASHBOARD_ROLE", "viewer")
    return given if given in ROLES else None


def who() -> str:
    """The name under which this person's verdicts are kept."""
    return str(st.user.email) if signs_in() else getpass.getuser()


def may(needed: Role) -> bool:
    """Whether the person of this session has a role, for showing and hiding."""
    found = role()
    return found is not None and ROLES.index(found) >= ROLES.index(needed)


def allow(needed: Role) -> None:
    """Refuse unless the person of this session has a role. Every action calls this.

    Raises:
        NotAllowedError: they have a lower one, or are not signed in.
    """
    if not may(needed):
        raise NotAllowedError(
            f"this needs the role {needed} (to {_WHAT[needed]}); yours is {role() or 'none'}. "
            "Ask whoever runs the dashboard."
        )


def require_sign_in() -> None:
    """Stop the script here unless the person may look. Runs before any page does."""
    if role() is not None:
        return
    st.title("tabdiff")
    if signs_in() and not st.user.is_logged_in:
        st.write("Sign in to see the workspace.")
        st.button("Sign in", type="primary", on_click=st.login)
    elif signs_in():
        st.error("You are signed in, but have no role here. Ask whoever runs the dashboard.")
        st.button("Sign out", on_click=st.logout)
    else:
        st.error(f"TABDIFF_DASHBOARD_ROLE must be one of {', '.join(ROLES)}. Set it and start again.")
    st.stop()
