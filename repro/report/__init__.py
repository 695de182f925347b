"""Figures, notebook helpers, offline HTML and the dashboard."""

from repro.report.experiment import Experiment
from repro.report.figures import HEATMAP, MARKERS, PALETTE

__all__ = ["HEATMAP", "MARKERS", "PALETTE", "Experiment"]
