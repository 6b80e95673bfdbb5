"""Adapters in the loops and libraries of others: trainers, checkpoints, the hub.

Frameworks are imported when a function that needs one is called.
"""
