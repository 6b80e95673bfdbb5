"""Maps onto balls of norms and onto boxes of singular values, from free parameters of any size.

What puts one of them between fixed maps, or subtracts its start, is in `composed`.
"""
