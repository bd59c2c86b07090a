"""Prefect flows: thin wrappers over `tabdiff.operations`, and how they are scheduled."""
