"""The operations as Triton kernels, for CUDA: one tile of entries at a time, read once.

Asked for by ``use_backend("triton")``. What has no kernel here, or is wider than a tile, is done by
`batches`. Values are checked by Triton's interpreter and code by its compiler; nothing of this has
been run on a GPU.
"""
