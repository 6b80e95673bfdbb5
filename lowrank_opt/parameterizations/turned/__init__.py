"""Updates tied to a base weight, which rotations and reflections turn.

Published names of them are functions, in `published`.
"""
