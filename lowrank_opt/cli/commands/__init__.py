"""The commands, one file each: its name is that of the file, and `add_to` registers its options.

What several commands share is one level up.
"""
