"""The encoder of SegFormer, MiT-B0 to B5, as backbones for fcn-jax."""
