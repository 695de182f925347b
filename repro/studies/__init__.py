"""What each table measures: from a notebook's parameters to tidy rows, one module per paper."""
