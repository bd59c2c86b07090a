"""Series."""

from __future__ import annotations

import streamlit as st

from dashboard.state import page

with page("Series"):
    st.info("This page is being built.")
