"""Methods on the matrices of one rank, and the geometry, starts and stages they share.

Methods on sets and parameterizations are one level up.
"""
