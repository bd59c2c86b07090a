"""The workspace: what is registered, fitted, scored, flagged and judged, in one folder and one database.

    TABDIFF_HOME/
      workspace.db    SQLite, unless TABDIFF_DATABASE_URL names a PostgreSQL database
      models/         one folder for each version (tabdiff.bundle), and rows that no version trained on
      scores/         one Parquet file for each scored part of a source
      synthetic/      drawn tables with their reports
      locks/          held by runs that are alive

The database says which files count: a file without a row is left over from something that was killed, and `gc` takes it.
"""

from __future__ import annotations

from tabdiff.store.workspace import Workspace

__all__ = ["Workspace"]
