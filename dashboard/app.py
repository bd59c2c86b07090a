"""Entry of the dashboard: who is it, and which pages are there. `tabdiff dashboard` starts it."""

from __future__ import annotations

from pathlib import Path

import streamlit as st

from dashboard import access

_HERE = Path(__file__).parent
st.logo(str(_HERE / "static" / "logo.svg"), size="large")
st.set_page_config(page_title="tabdiff", page_icon=str(_HERE / "static" / "icon.png"), layout="wide")
access.require_sign_in()

PAGES = {
    "Watch": [
        ("overview", "Overview", ":material/dashboard:"),
        ("anomalies", "Anomalies", ":material/troubleshoot:"),
        ("series", "Series", ":material/timeline:"),
    ],
    "Make": [
        ("synthesize", "Synthesize", ":material/auto_awesome:"),
        ("models", "Models", ":material/deployed_code:"),
        ("data", "Data", ":material/database:"),
    ],
    "Operate": [("runs", "Runs", ":material/play_circle:")],
}
chosen = st.navigation(
    {
        section: [
            st.Page(_HERE / "pages" / f"{name}.py", title=title, icon=icon, url_path=name, default=name == "overview")
            for name, title, icon in pages
        ]
        for section, pages in PAGES.items()
    }
)
with st.sidebar:
    st.caption(f"Role: {access.role()}")
    if access.signs_in():
        st.button("Sign out", on_click=st.logout, type="tertiary", icon=":material/logout:")
st.set_page_config(page_title=f"{chosen.title} · tabdiff", page_icon=str(_HERE / "static" / "icon.png"), layout="wide")
chosen.run()
