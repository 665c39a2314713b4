"""`python -m fcn_jax`: the same as `fcn-jax`."""

import sys

from fcn_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
