"""Keep the server quick: what the collector of garbage need not look at again.

Streamlit collects garbage after every run of a page, all generations, holding everybody up. With torch, pandas, polars and SQLAlchemy in memory that walks
over a million objects that live as long as the process: .3 to .4 s for each page. `settle` puts what is alive aside (`gc.freeze`), so that
the collector sees sessions and answers only. Done again when more was imported; what was put aside by mistake comes back then.
"""

from __future__ import annotations

import gc
import sys
import threading

_MORE = 40  # modules that came since: something large was imported
_lock = threading.Lock()
_state = {"modules": 0}


def settle(*, at_least: int = 0) -> bool:
    """Put aside what is alive if so many modules came since the last time; whether it was done."""
    if len(sys.modules) - _state["modules"] < at_least or not _lock.acquire(blocking=False):
        return False
    try:
        gc.unfreeze()
        gc.collect()
        gc.freeze()
        _state["modules"] = len(sys.modules)
        return True
    finally:
        _lock.release()


def settle_if_grown() -> None:
    """`settle`, if something large was imported meanwhile."""
    settle(at_least=_MORE)
