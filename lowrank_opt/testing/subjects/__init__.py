"""Who is checked: a public check for each kind of object, and targets named in text.

Not here: the bodies of the laws (`laws`), and what is printed of their verdicts (`reports`).
"""
