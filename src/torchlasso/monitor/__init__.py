"""Showing people what was learnt: figures, the HTML report, the terminal summary and progress."""
