"""A seeded, bounded fuzz test of everything that reads a user's files, settings and arguments.

`python -m fuzz` runs it (`make fuzz`); `tests/test_fuzz.py` runs a short form. Each case is named
by FAMILY:MUTATION:SEED and is the same wherever it runs. See `docs/reliability.md` for what is
tried, and the last result.

    cases        what a case is, and the register of mutations
    damage       bytes that are flipped, cut, inserted
    encoders     PNG and TIFF files of every bit depth, written here, so that no decoder's own writer is the judge
    product      the entry points of fcn_jax that are called, all in one place
    oracle       runs one case, and judges it
    workers      processes with a time limit for each case
    report       the table
    images, masks, folders, weights, settings, checkpoints, commands
                 the families of mutations
"""
