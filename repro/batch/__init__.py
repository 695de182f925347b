"""Notebook execution with papermill, planning and the cluster workflow."""
