"""The library beside the installed peers, on the same folds, one process for each fit."""
