"""Convert PyTorch weights to a checkpoint: `python convert_weights.py FILE --model NAME -o DIR`.

It runs `fcn-jax convert`.
"""

import sys

from fcn_jax.cli import main

if __name__ == "__main__":
    sys.exit(main(["convert", *sys.argv[1:]]))
