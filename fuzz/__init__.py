"""A seeded, bounded fuzz test of all code that reads a user's files, settings and arguments.

`python -m fuzz` runs it (`make fuzz`); `tests/test_fuzz.py` runs a short form. Each case is named
by FAMILY:MUTATION:SEED and is the same on every machine. `docs/reliability.md` lists the mutations
and the last result.

    cases        the cases, and the register of mutations
    damage       flips, cuts and insertions of bytes
    encoders     PNG and TIFF files of every bit depth, written without an image library
    product      the entry points of fcn_jax that the cases call
    oracle       runs one case, and judges it
    workers      processes with a time limit for each case
    report       the table of results
    images, masks, folders, weights, settings, checkpoints, commands
                 the families of mutations
"""
