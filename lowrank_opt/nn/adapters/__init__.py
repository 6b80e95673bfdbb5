"""Layers that compute with adapters and stay what they are.

What a record, a store, a weight slot or a layer kind is lives here; how adapters come into a
model is in `surgery`, and no file is read or written here.
"""
