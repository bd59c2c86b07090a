"""Is the service of this container well? Exit code 0 or 1. Python is there anyway; curl need not be.

python health.py http PORT PATH    something answers 200 on loopback
python health.py workspace         the workspace opens and its database answers
"""

from __future__ import annotations

import sys
import urllib.request


def main(kind: str, *arguments: str) -> int:
    """Look once."""
    try:
        if kind == "http":
            port, path = arguments
            with urllib.request.urlopen(f"http://127.0.0.1:{int(port)}/{path.lstrip('/')}", timeout=5) as answer:
                return int(answer.status != 200)
        from tabdiff.store import Workspace

        Workspace.open()
    except Exception as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
