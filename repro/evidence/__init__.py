"""Published numbers, claims, readings, records, statistics and verdicts."""
