"""The type checker of the test run: beartype, for array shapes and dtypes only.

Everything else is mypy's, which knows protocols and does not mind a test's stand-in for a denoiser.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from beartype import beartype

_ARRAY = re.compile(r"\b(Bool|Float|Float32|Float64|Int|Shaped)\[")


def arrays(function: Callable[..., Any]) -> Callable[..., Any]:
    """Check the arguments and results of `function` that are annotated with a jaxtyping shape."""
    annotations = function.__annotations__
    function.__annotations__ = {name: hint for name, hint in annotations.items() if _ARRAY.search(str(hint))}
    try:
        return beartype(function)
    finally:
        function.__annotations__ = annotations
