"""A recipe's training in PyTorch: the same initial values, losses, optimizer and averages."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from flax import nnx

from benchmarks import torch_losses
from fcn_jax import config
from fcn_jax.api import Preprocess
from fcn_jax.convert.export import to_torch
from fcn_jax.convert.tables import tables
from fcn_jax.eval.metrics import ConfusionMatrix, Scores
from fcn_jax.models.spec import resolve
from fcn_jax.plugins.api import Example
from fcn_jax.train import groups, setup
from fcn_jax.train.inputs import Inputs
from fcn_jax.verify.reference import build_reference


class TorchTraining:
    """The training of a recipe in PyTorch, in float32 and channels_last.

    The network is the reference of the recipe's model: of its parts, as `fcn-jax verify` has it.
    Dropout and stochastic depth draw other numbers than in JAX.

    Attributes:
        network: the network in train mode.
        average: running average of its weights, `torch.optim.swa_utils.AveragedModel`, or None.
    """

    def __init__(self, inputs: Inputs) -> None:
        """Build the network, with the values that JAX's side starts with, and the optimizer.

        Raises:
            SystemExit: the recipe has settings that are not supported here, all of them.
        """
        recipe, classes = inputs.config, inputs.train.classes
        _require_supported(recipe)
        made, state, _ = setup.make(recipe, classes, inputs.total_steps, inputs.pixels)
        for note in made.notes:
            print(note, flush=True)
        model = nnx.merge(made.graphdef, state.params, state.batch_stats, made.random_keys)
        spec, settings = made.spec, recipe.optim
        self._recipe, self._classes, self._task = recipe, len(classes), spec.task
        self._preprocess: Preprocess = resolve(spec).preprocess
        self._loss = torch_losses.weighted_sum(made.losses.record(), spec.task)
        network, table = build_reference(spec), tables(spec)["model", "torchvision"]
        found = {name: table.to_jax(name) for name in network.state_dict()}
        self._paths = {name: place[0] for name, place in found.items() if place is not None}
        network.load_state_dict({k: torch.from_numpy(v) for k, v in to_torch(model).items()})
        self.network = network.to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self._freeze_batch_norm(settings.freeze_batch_norm)
        self._optimizer = self._make_optimizer(settings, made.rates)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(
            self._optimizer, lambda step: float(made.schedule(step)) / settings.lr
        )
        self.average: Any = None
        if settings.ema_decay is not None:
            self.average = torch.optim.swa_utils.AveragedModel(
                self.network, avg_fn=self._averaged, use_buffers=True
            )

    def step(self, batch: Mapping[str, np.ndarray]) -> float:
        """Train on one batch and return its loss."""
        settings = self._recipe.optim
        self._optimizer.zero_grad(set_to_none=True)
        outputs = self.network(self._input(batch["image"]))
        labels = torch.from_numpy(batch["mask"]).long()
        loss = self._loss(outputs["out"], labels)
        if "aux" in outputs:
            loss = loss + settings.aux_weight * self._loss(outputs["aux"], labels)
        loss.backward()
        trained = [p for group in self._optimizer.param_groups for p in group["params"]]
        if settings.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(trained, settings.clip_norm)
        if settings.clip_value is not None:
            torch.nn.utils.clip_grad_value_(trained, settings.clip_value)
        self._optimizer.step()
        self._schedule.step()
        if self.average is not None:
            self.average.update_parameters(self.network)
        return float(loss.item())

    def scores(self, examples: Iterable[Example]) -> Scores:
        """Scores of the averages, or of the network without averages, at the images' own sizes."""
        network = self.network if self.average is None else self.average.module
        modes = {module: module.training for module in network.modules()}
        network.eval()
        matrix = ConfusionMatrix(self._classes)
        with torch.inference_mode():
            for example in examples:
                logits = network(self._input(example.image[None]))["out"][0]
                found = logits[0] > 0 if self._task == "binary" else logits.argmax(0)
                matrix.add(example.mask, found.numpy().astype(np.uint8))
        for module, training in modes.items():
            module.training = training
        return matrix.scores()

    def _input(self, images: np.ndarray) -> torch.Tensor:
        """Normalize u8[N,H,W,3] to f32[N,3,H,W] in channels_last."""
        preprocess = self._preprocess
        ordered = images[..., ::-1].copy() if preprocess.channel_order == "bgr" else images
        scaled = torch.from_numpy(ordered).float() * (preprocess.scale / 255)
        normalized = (scaled - torch.tensor(preprocess.mean)) / torch.tensor(preprocess.std)
        return normalized.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)

    def _make_optimizer(
        self, settings: config.OptimConfig, rates: Mapping[str, groups.Rate]
    ) -> torch.optim.Optimizer:
        members: dict[groups.Rate, list[torch.nn.Parameter]] = {}
        for name, parameter in self.network.named_parameters():
            rate = rates[self._paths[name]]
            if rate.lr_mult == 0:
                parameter.requires_grad_(False)
            else:
                members.setdefault(dataclasses.replace(rate, layer=None), []).append(parameter)
        param_groups: list[dict[str, Any]] = [
            {
                "params": parameters,
                "lr": settings.lr * rate.lr_mult,
                "weight_decay": rate.weight_decay,
            }
            for rate, parameters in members.items()
        ]
        if settings.name == "sgd":
            return torch.optim.SGD(param_groups, settings.lr, momentum=settings.momentum)
        kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[settings.name]
        betas = settings.betas or (0.9, 0.999)
        return kind(param_groups, settings.lr, betas=betas, eps=settings.eps)

    def _freeze_batch_norm(self, globs: Iterable[str]) -> None:
        for name, module in self.network.named_modules():
            if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
                path = self._paths[f"{name}.weight"].rpartition(".")[0]
                if any(groups.matches(path, glob) for glob in globs):
                    module.eval()

    def _averaged(self, old: torch.Tensor, new: torch.Tensor, count: Any) -> torch.Tensor:
        if not old.is_floating_point():
            return new
        settings = self._recipe.optim
        decay = settings.ema_decay or 0.0
        if settings.ema_warmup:
            decay = min(decay, (1 + int(count)) / (10 + int(count)))
        return torch.lerp(old, new, 1 - decay)


def _require_supported(recipe: config.Config) -> None:
    settings = recipe.optim
    problems = []
    if settings.name not in ("sgd", "adam", "adamw"):
        problems.append(f"optim.name = {settings.name}; it has sgd, adam and adamw")
    if settings.accumulate_steps > 1:
        problems.append("optim.accumulate_steps")
    if recipe.model.in_channels != 3:
        problems.append(f"model.in_channels = {recipe.model.in_channels}")
    if recipe.model.dtype != "float32":
        problems.append(f"model.dtype = {recipe.model.dtype}")
    if problems:
        raise SystemExit(f"this benchmark does not support {'; nor '.join(problems)}")
