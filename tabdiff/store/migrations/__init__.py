"""How a workspace database of any version becomes one of the newest."""
