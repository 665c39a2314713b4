"""PyTorch's side of conversion: names and layouts of weights (`rules`), weight files, reference networks."""
