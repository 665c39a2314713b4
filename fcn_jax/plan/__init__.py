"""Memory, time and scaling of a training run on devices that need not be present."""
