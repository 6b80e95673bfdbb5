"""Runnable claims: each module prints a table, writes a JSON record and figures."""
