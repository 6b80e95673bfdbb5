"""Settings chosen on held-out entries, and intervals calibrated on them.

The solvers themselves are in `lowrank_opt.solvers`.
"""
