"""Mutants of the library: `operators` makes them, `server` runs them.

What is asked of them, and the table, is in `experiments.mutants`. No mutant is ever written to a
file of the package.
"""
