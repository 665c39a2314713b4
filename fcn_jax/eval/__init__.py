"""Using a trained network: prediction, scores, pictures."""
