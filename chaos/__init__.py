"""A seeded, bounded test that kills trainings at random moments, resumes them, and compares.

`python -m chaos` runs it (`make chaos`); `tests/test_chaos.py` runs a short form. Trainings are
processes of the command line, and their kills are signals from outside. Each training is killed and
resumed until it is done. Then it must equal a training that was never interrupted.
`docs/reliability.md` has the last result.

    kills        the kinds of kills and the moments at which they come, drawn by the seed
    training     the training processes, and what their run directory says about them
    story        one training from its start to its end, with all its kills
    judge        compares a finished run with the undisturbed one
    report       the table of results
"""
