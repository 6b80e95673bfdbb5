"""Laws of completion solvers: results on planted problems, and bounds that they claim.

Not here: the problems themselves (`cases.planted`).
"""
