"""Adapter folders of this package: what they hold, saving, and strict loading.

Nothing is unpickled, and nothing is made before it was checked. Checkpoints in PEFT's format are
in `interop`.
"""
