"""What the masks' stored values mean: class lists, label maps, palettes."""
