"""Figures, notebook helpers, offline HTML and the dashboard."""
