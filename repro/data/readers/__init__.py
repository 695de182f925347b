"""Readers of the publishers' formats: `(folder, split) -> Listing`."""
