"""Figures, notebook helpers, offline HTML and the dashboard.

Import from the modules: `repro.report.experiment` (notebooks; needs torch), `repro.report.html` and
`repro.report.pages` (batch; do not).
"""
