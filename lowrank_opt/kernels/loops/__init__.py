"""The operations as numba loops over rows and columns, on the threads of torch: for the CPU.

Nothing here is imported before it is used; what other devices run is in `batches`.
"""
