"""What clients send, as factors of one shape.

No rule that merges lives here (`federated`, `combined`).
"""
