"""Posterior distributions over completions: Gibbs sampling and variational Bayes.

Point estimates are in `solvers`.
"""
