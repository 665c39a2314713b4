"""yourname: a your kind for fcn-jax."""
