"""What a law is tried at: parameters, members, problems, small models, and truth in NumPy.

Not here: what is asked of a case (`laws`), and how cases are chosen and shrunk (`search`).
"""
