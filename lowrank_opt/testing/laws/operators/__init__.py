"""Laws of operators: one matrix, however it is asked.

Not here: where its factors come from (`laws.maps`).
"""
