"""Adapters of one model combined into one, with the set that the result is in.

Clients and rounds are in `federated`.
"""
