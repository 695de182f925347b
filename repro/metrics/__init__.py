"""Faithfulness, localisation and classification metrics (torchmetrics)."""
