"""How a counter-example is looked for, shrunk, and written as a program.

Not here: what the laws say (`laws`), and on whose behalf they are asked (`subjects`).
"""
