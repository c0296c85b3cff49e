"""Exact removal of what a model carries and never uses: see ``compact`` and ``coupled``."""
