"""Proofs of how far a completion can be from the optimum of a convex problem.

Bounds and their arithmetic only; what is minimised is described in `model`.
"""
