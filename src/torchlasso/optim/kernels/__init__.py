"""The step and its proximal map in one pass: a readable reference and a small C library, behind one face."""
