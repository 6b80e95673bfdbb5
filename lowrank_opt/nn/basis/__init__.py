"""What adapters and low-rank layers stand on: kinds of layers, products, fixed updates, errors.

How a layer exposes its weights and what a low-rank weight does in it is here; nothing knows of
records, models or files.
"""
