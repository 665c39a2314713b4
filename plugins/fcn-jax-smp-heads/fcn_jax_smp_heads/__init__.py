"""U-Net, FPN and PSPNet of segmentation_models_pytorch, as heads for fcn-jax."""
