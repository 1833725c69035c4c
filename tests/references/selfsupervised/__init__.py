"""Readers of references/ssl: each module has `check(case)` for the cases of the file of its name."""
