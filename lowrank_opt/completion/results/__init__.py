"""What a completion returns: operator, biases, status, history; storage and display.

What one does with a result afterwards is in `after`.
"""
