"""Singular vectors of trained updates beside those of the base: reports and interventions.

Nothing here merges.
"""
