"""The Flax Linen networks of transformers 4 against its own PyTorch networks.

    pip install 'fcn-jax[torch]' 'transformers==4.57.1'
    python examples/ports/transformers_networks.py

BERT has token ids as inputs and several outputs, the vision transformer images. Version 5 of
transformers has no Flax networks any more; these are their last ones.
"""

import jax
import numpy as np
import torch

from fcn_jax import verify
from fcn_jax.pytorch import import_torchvision
from fcn_jax.verify.randomize import randomize

import_torchvision()  # also where it is installed for another build of torch
import transformers  # noqa: E402
from transformers.models.bert.modeling_flax_bert import FlaxBertModule  # noqa: E402
from transformers.models.vit.modeling_flax_vit import (  # noqa: E402
    FlaxViTForImageClassificationModule,
)

SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    # It is a function here, not a layer, so `compare` cannot switch it off.
    "attention_probs_dropout_prob": 0.0,
}


def bert():
    """Run a comparison of BERT: ids, an attention mask and types -> states and pooled output."""
    settings = {"vocab_size": 100, "intermediate_size": 64, "attn_implementation": "eager"}
    config = transformers.BertConfig(**settings, **SMALL)
    torch.manual_seed(0)
    reference = transformers.BertModel(config)
    randomize(reference, 0)
    rng = np.random.default_rng(0)
    ids, mask = rng.integers(0, 100, (2, 11)), np.ones((2, 11), np.int64)
    mask[1, 7:] = 0
    port = FlaxBertModule(config)
    types, positions = np.zeros_like(ids), np.broadcast_to(np.arange(11), ids.shape)
    variables = jax.eval_shape(port.init, jax.random.key(0), ids, mask, types, positions)
    return verify.compare(
        reference,
        (port, variables),
        [ids, mask, types, positions],
        call_torch=lambda net, x: dict(net(*x)),
        call_jax=lambda net, x: {
            name: y for name, y in net(*x).items() if name in ("last_hidden_state", "pooler_output")
        },
        subject="transformers' BERT",
    )


def vit():
    """Run a comparison of the vision transformer with a classifier."""
    config = transformers.ViTConfig(image_size=32, patch_size=8, intermediate_size=64, **SMALL)
    config.num_labels = 10
    torch.manual_seed(0)
    reference = transformers.ViTForImageClassification(config)
    randomize(reference, 0)
    images = np.random.default_rng(0).standard_normal((2, 32, 32, 3)).astype(np.float32)
    port = FlaxViTForImageClassificationModule(config)
    variables = jax.eval_shape(port.init, jax.random.key(0), images)
    return verify.compare(
        reference,
        (port, variables),
        images,
        call_torch=lambda net, x: net(*x).logits,
        call_jax=lambda net, x: net(*x).logits,
        subject="transformers' ViT",
    )


def main() -> None:
    """Print the reports."""
    print(bert(), "\n")
    print(vit())


if __name__ == "__main__":
    main()
