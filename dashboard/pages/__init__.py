"""One file for each page. Layout only: what is read is in `dashboard.queries`, what is drawn in `dashboard.charts`."""
