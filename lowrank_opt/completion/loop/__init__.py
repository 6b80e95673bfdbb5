"""What every iteration shares: stopping rules, history, progress, checkpoints, statuses.

No objective and no method lives here; the loops themselves are in `solvers` and `bayes`.
"""
