"""Aggregation of clients: rules, rounds, and means with a privacy guarantee.

Merging of the adapters of one model is in `combined`.
"""
