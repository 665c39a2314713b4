"""Using a trained model: prediction, scores, pictures."""
