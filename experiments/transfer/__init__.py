"""Trained networks, adapted to another task: what is learnt, what is kept, and at which rates."""
