"""Predicted time, memory and disk space per table, from a few steps of every training on the device at hand."""

from repro.planning.cost import MODEL, Cost, cost_of
from repro.planning.plan import Planner, make_plan
from repro.planning.sampled_run import Loop, SampledRun
from repro.planning.work import Work, calibrate

__all__ = ["MODEL", "Cost", "Loop", "Planner", "SampledRun", "Work", "calibrate", "cost_of", "make_plan"]
