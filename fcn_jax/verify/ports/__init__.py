"""JAX's side of a comparison, for every framework that networks are written in."""

from fcn_jax.verify.ports.base import Called, Port, Watch
from fcn_jax.verify.ports.make import make_port
from fcn_jax.verify.ports.parts import PartsPort

__all__ = ["Called", "PartsPort", "Port", "Watch", "make_port"]
