"""Modules whose weight is a parameterization, without any adapter.

Layers of low rank from their start, a parameterization as the weight of another module, rows of
trained norm. Adapters are in `adapters` and `surgery`.
"""
