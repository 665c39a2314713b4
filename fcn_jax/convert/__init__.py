"""Import and export of weights: files, state dicts, published weights, checkpoints."""
