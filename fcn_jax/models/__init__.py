"""The networks: backbones, heads, and the segmenter that puts one of each together."""
