"""Training with exact zeros: metrics of torch's optimizers and the proximal step that rides on them."""
