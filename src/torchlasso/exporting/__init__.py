"""Models written in formats that other programs run, each file compared with the model before it is kept."""
