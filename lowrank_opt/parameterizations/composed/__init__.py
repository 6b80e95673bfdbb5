"""Maps around an inner parameterization: between weights, frames or features, and offsets.

The inner one is an instance: nothing here imports a map. Examples are in `published`.
"""
