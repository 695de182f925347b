"""Notebook execution with papermill, and the cluster workflow."""
