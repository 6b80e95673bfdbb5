"""Fitted estimators saved and loaded.

The folder format of results is in `lowrank_opt.completion`.
"""
