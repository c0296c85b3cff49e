"""From rows of data to a sparse model, with the strength chosen and the evidence kept."""
