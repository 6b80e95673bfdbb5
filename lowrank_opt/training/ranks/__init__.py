"""How many components each matrix gets: scores, budgets, and the allocator that drops and cuts.

Scores of components and of whole modules, before training and during it. Optimizers do not know
of it.
"""
