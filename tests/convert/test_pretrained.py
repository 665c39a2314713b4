"""`fcn_jax.load`: registered models with their published weights."""

import numpy as np
import pytest
from flax import nnx

import fcn_jax
from fcn_jax.errors import ConfigError, WeightsError
from fcn_jax.models.spec import registered_spec
from fcn_jax.plugins import registry
from fcn_jax.verify.randomize import randomize


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fcn_resnet50", "fcn_resnet101"])
def test_loads_torchvision_models_and_returns_their_logits(torchvision, name):
    import torch

    torch.manual_seed(0)
    network = getattr(torchvision.models.segmentation, name)(
        weights=None, weights_backbone=None, aux_loss=True
    ).eval()
    randomize(network, seed=0)
    model = fcn_jax.load(name, network.state_dict())
    x = np.random.default_rng(0).standard_normal((1, 65, 97, 3)).astype(np.float32)
    with torch.no_grad():
        theirs = network(torch.tensor(x.transpose(0, 3, 1, 2)))["out"].numpy().transpose(0, 2, 3, 1)
    graphdef, state = nnx.split(model)
    ours = np.asarray(nnx.merge(graphdef, state)(x))
    assert np.abs(ours - theirs).max() < 1e-5 * np.abs(theirs).max()
    back = {key: torch.from_numpy(value) for key, value in fcn_jax.to_torch(model).items()}
    network.load_state_dict(back, strict=True)
    assert all(torch.equal(back[key], value) for key, value in network.state_dict().items())


@pytest.mark.slow
def test_loads_without_the_auxiliary_head(torchvision):
    import torch

    make = torchvision.models.segmentation.fcn_resnet50
    network = make(weights=None, weights_backbone=None, aux_loss=True)
    model = fcn_jax.load("fcn_resnet50", network.state_dict(), aux_head=False)
    assert model.aux_head is None
    back = {key: torch.from_numpy(value) for key, value in fcn_jax.to_torch(model).items()}
    make(weights=None, weights_backbone=None, aux_loss=False).load_state_dict(back, strict=True)


def test_published_weights_have_the_hash_in_their_name():
    for name in ("fcn_resnet50", "fcn_resnet101"):
        published = registry.default().model(name).weights["COCO_WITH_VOC_LABELS_V1"]
        assert published.url.endswith(f"{name}_coco-{published.sha256}.pth")
        assert registered_spec(name).output_stride == 8


def test_rejects_a_backbone():
    with pytest.raises(
        ConfigError, match="'resnet18' is a backbone; load needs a model with a head"
    ):
        fcn_jax.load("resnet18", {})


def test_unknown_weights_name_the_nearest():
    with pytest.raises(
        WeightsError,
        match=r"COCO_WITH_VOC_LABELS_V2: no such weights.*Did you mean 'COCO_WITH_VOC_LABELS_V1'",
    ):
        fcn_jax.load("fcn_resnet50", "COCO_WITH_VOC_LABELS_V2")
