"""The dashboard: Streamlit pages over the workspace. It looks, judges, and starts flows; it never fits a model itself."""
