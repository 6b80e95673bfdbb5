"""The operations in plain torch, a batch of bounded size at a time: for every device.

No numba, and no loop over entries; what the CPU runs, where numba is installed, is in `loops`.
"""
