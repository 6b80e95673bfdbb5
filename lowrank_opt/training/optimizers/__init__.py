"""Optimizers whose unit is a pair of factors, and GaLore for dense weights.

A file is one method. The linear algebra of a step lives in `algebra`; which components live is
decided in `ranks`; what pairs are says `training.roles`.
"""
