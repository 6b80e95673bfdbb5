"""Laws of the module that carries a map: state, copies, devices, allocations.

Not here: what W is (`maps`).
"""
