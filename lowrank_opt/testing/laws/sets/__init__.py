"""Laws of feasible sets: members, samples, nearest members, linear minimisers, other views.

Not here: what a parameterization promises about its set (`laws.maps`).
"""
