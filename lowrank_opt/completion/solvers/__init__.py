"""Methods that search for one completed matrix, one file each.

Posterior distributions are in `bayes`; what every iteration shares is in `loop`.
"""
