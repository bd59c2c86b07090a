"""The commands of `tabdiff`, a file for each topic. Each parses, calls one verb of the library and says what came of it.

torch, scikit-learn and polars are imported inside the commands, so that `tabdiff --help` does not wait for them.
"""
