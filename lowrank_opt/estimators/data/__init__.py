"""What estimators are given, as entries, columns and side information.

Formats and ids are read by `lowrank_opt.tables`.
"""
