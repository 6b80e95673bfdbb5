"""What is fitted: biases, losses and links, side information, and the objective they make.

No iterations live here (`loop`), and nothing that searches for a minimum (`solvers`).
"""
