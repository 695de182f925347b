"""Training loops, replicas and the run store."""
