"""What one does with a result: intervals, new rows, radius paths, drift over time.

Nothing here is called by a solver.
"""
