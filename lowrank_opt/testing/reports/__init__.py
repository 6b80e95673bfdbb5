"""A run of laws over targets, and its verdicts for people, for machines and for pytest.

Not here: anything that decides a verdict.
"""
