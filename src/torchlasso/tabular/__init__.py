"""From a table in a file to a sparse model, an honest score, a report and predictions."""
