import pytest

from fcn_jax.models import fcn, fcn_head, fcn_skip, resnet, segmenter
from tests.helpers.annotations import check_annotations


@pytest.fixture(autouse=True, scope="module")
def annotations():
    """Check the shapes in the annotations of the models in all tests of this folder."""
    with pytest.MonkeyPatch.context() as patch:
        check_annotations(patch, fcn, fcn_head, fcn_skip, resnet, segmenter)
        yield
