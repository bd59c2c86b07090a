"""Write what is generated: the help texts in docs/cli.md and the reference in docs/reference.

Run by `make docs`. With --check nothing in docs/cli.md is changed; a difference is an error.
"""

from __future__ import annotations

import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

DOCS = Path(__file__).parent
_HELP_BLOCK = re.compile(r"(<!-- help: (?P<name>[\w -]*?) -->\n```text\n)(?:.*?\n)??(```\n)", re.DOTALL)
# A terminal of known width without colours, whatever this one is.
_PLAIN = {"TERMINAL_WIDTH": "100", "COLUMNS": "100", "NO_COLOR": "1", "_TYPER_FORCE_DISABLE_TERMINAL": "1"}


def help_text(command: str) -> str:
    """What `tabdiff COMMAND --help` prints."""
    call = [sys.executable, "-c", "from tabdiff.cli import main; main()", *command.split(), "--help"]
    done = subprocess.run(call, capture_output=True, text=True, check=True, env={**os.environ, **_PLAIN})
    return "\n".join(line.rstrip() for line in done.stdout.strip("\n").splitlines()).strip("\n")


def with_help_texts(markdown: str) -> str:
    """The same page with every marked block replaced by the help text of today."""
    return _HELP_BLOCK.sub(lambda block: block[1] + help_text(block["name"]) + "\n" + block[3], markdown)


def build_reference(folder: Path) -> None:
    """Build HTML pages from docstrings."""
    import pdoc
    import pdoc.render

    import tabdiff

    for name in tabdiff.__all__:  # `fit` and `load` are imported when first asked for, and pdoc does not ask
        setattr(tabdiff, name, getattr(tabdiff, name))
    pdoc.render.configure(docformat="google", footer_text="tabdiff", search=True)
    modules = [module.name for module in pkgutil.iter_modules(tabdiff.__path__, "tabdiff.")]
    pdoc.pdoc("tabdiff", *modules, output_directory=folder)


def main(*arguments: str) -> int:
    """Build everything, or with --check say what is out of date."""
    page = DOCS / "cli.md"
    old = page.read_text(encoding="utf-8")
    new = with_help_texts(old)
    build_reference(DOCS / "reference")
    if new != old and "--check" in arguments:
        print(
            "docs/cli.md differs from what --help prints. Run make docs and commit the result.",
            file=sys.stderr,
        )
        return 1
    page.write_text(new, encoding="utf-8")
    print(f"{page} and {DOCS / 'reference' / 'index.html'} are up to date.")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
