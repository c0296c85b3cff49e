"""Proximal maps of single penalties, as pure functions on tensors; what all share is in ``prox``."""
