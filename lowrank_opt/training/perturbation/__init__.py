"""Flat minima: noise on the full weight while only its low-rank update is trained.

The schedule and the targets, the scale of each filter, noise kept as a seed. Optimizers and
chains live next door.
"""
