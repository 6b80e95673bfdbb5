"""Maps whose sets bound the rank alone: products of free factors, and sums of components.

Balls of norms are in `balls`; what reads a base weight is in `turned`.
"""
