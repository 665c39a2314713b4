"""Built-in backbones and heads, and the model that combines a backbone and heads."""
