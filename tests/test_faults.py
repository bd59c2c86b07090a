"""The benchmark of faults, in small: kills at random moments, broken files, a jumping clock, two at once. It fails if a row is lost or doubled."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_every_row_is_scored_once_whatever_happens(database_url: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    call = [sys.executable, str(ROOT / "benchmarks" / "faults.py"), "--times", "2", "--seed", "7"]
    if database_url.startswith("postgresql"):
        call += ["--database", database_url, "--only", "writing", "clock", "two"]
    done = subprocess.run(call, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = [line for line in done.stdout.splitlines() if line.startswith("| ")]
    assert len(rows) == 1 + (3 if "--only" in call else 10)
    assert all(row.split("|")[2].strip() == "2" for row in rows[1:])
