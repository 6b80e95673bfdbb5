"""Published methods as functions that compose classes, and examples of the compositions.

No class is defined here.
"""
