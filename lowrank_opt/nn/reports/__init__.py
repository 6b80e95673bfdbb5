"""What the adapters of a model, or of a folder, are: tables, reports, a callback.

Everything here reads and nothing changes a model.
"""
