"""DPT, a head for vision transformers, for fcn-jax."""
