"""The plugin contract as a test suite; `fcn_jax.testing` is its public face."""
