"""Which checkpoints of a run are kept."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_jax.checkpoint import Retention

RANKS = {1: 0.2, 2: 0.6, 3: 0.5, 4: -1.0, 5: 0.6, 6: -1.0}


@pytest.mark.parametrize(
    ("retention", "kept"),
    [
        (Retention(), {5, 6}),  # of equal scores, the later one is the best
        (Retention(best=2), {2, 5, 6}),
        (Retention(best=3), {2, 3, 5, 6}),
        (Retention(latest=3, best=0), {4, 5, 6}),
        (Retention(latest=1, best=0, every_steps=2), {2, 4, 6}),
        (Retention(latest=1, best=0, every_steps=4), {4, 6}),
        (Retention(latest=1, best=0, every_steps=7), {6}),
        (Retention(latest=9), set(RANKS)),
    ],
)
def test_keeps_the_latest_the_best_and_every_nth(retention, kept):
    assert retention.kept(RANKS) == kept


def test_keeps_the_first_after_a_multiple_without_a_checkpoint():
    ranks = dict.fromkeys((8, 16, 24, 32, 40), -1.0)
    assert Retention(1, 0, every_steps=10).kept(ranks) == {16, 24, 32, 40}
    assert Retention(1, 0, every_steps=30).kept(ranks) == {32, 40}


SCORES = st.sampled_from((-1.0, 0.0, 0.3, 0.5, 1.0))


@given(
    st.lists(st.tuples(st.integers(1, 9), SCORES), max_size=12),
    st.builds(Retention, st.integers(1, 3), st.integers(0, 3), st.integers(0, 7)),
)
def test_deleting_as_the_run_goes_keeps_what_one_look_at_the_end_keeps(saves, retention):
    step, ranks, present = 0, {}, {}
    for more, rank in saves:
        step += more
        ranks[step] = present[step] = rank
        present = {step: present[step] for step in retention.kept(present)}
    assert set(present) == retention.kept(ranks)
