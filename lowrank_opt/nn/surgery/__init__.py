"""Transitions of a model's record: adapt, switch, merge, combine, remove.

Each prepares all that may fail, then changes the record at once. What layers compute is in
`adapters`; files are in `folders` and `interop`.
"""
