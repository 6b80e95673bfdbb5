"""Linear algebra of factors: small matrices, tall products, thin bases, tangent vectors.

Everything is r x r or n x r and knows nothing of optimizers, schedules or models: steps live in
`optimizers`, scores in `ranks`.
"""
