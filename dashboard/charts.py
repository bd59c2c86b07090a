"""Charts as pure functions: a frame in, a specification out. Colours are told apart by colour-blind readers, too."""

from __future__ import annotations

# Okabe & Ito (2008). Severity is never told by colour alone: words and order say the same.
SEVERITY = {"high": "#D55E00", "medium": "#E69F00", "low": "#56B4E9"}
ACTUAL, EXPECTED, QUIET = "#D55E00", "#0072B2", "#8a97a5"
