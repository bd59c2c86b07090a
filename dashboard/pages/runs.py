"""Runs."""

from __future__ import annotations

import streamlit as st

from dashboard.state import page

with page("Runs"):
    st.info("This page is being built.")
