"""Laws of the map from parameters to W: its set, its rank, its derivatives, its inverse.

Not here: what a module keeps, copies and allocates (`modules`).
"""
