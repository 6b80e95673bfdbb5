"""What is to be solved, never how: data sets, splits, metrics, planted problems."""
