"""The networks of a run: built from its configuration, joined to objectives for each phase, read from its weights."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from pathlib import Path

import torch
from torch import Tensor, nn

from bridle.config import fingerprint
from bridle.data.loaders import content_settings
from bridle.errors import RunError
from bridle.models.classifier import Classifier
from bridle.models.encoder import Encoder
from bridle.models.predictor import CodeHead, PatchHead, Predictor
from bridle.models.tokenizer import Estimator, RandomTokenizer, Tokenizer
from bridle.objectives.base import Objective
from bridle.objectives.masked import MaskedCodes, MaskedPatches
from bridle.objectives.tokenizer import Joint, TokenizerDistillation
from bridle.phases import Phase
from bridle.randomness import derive_seed
from bridle.run import RunConfig, RunFolder, clip_grid
from bridle.train.weights import read_weights

LATER_NETWORKS = frozenset({"head", "patch_head", "cold", "tokenizer", "estimator"})
"""Networks that a run's weights may not hold yet: phases that need them can be added to it."""


class Networks(nn.Module):
    """The networks that a run's phases need, under the names they have in ``model.safetensors``.

    ``tokenizer`` and ``estimator`` exist when a phase trains them, ``cold`` when a phase starts cold, ``patch_head``
    for regression. A fine-tuned run has ``encoder`` and ``classifier`` alone.
    """

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        kinds = {phase.kind for phase in config.plan}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(config.seed, "networks"))
            self.encoder = Encoder(config.encoder)
            self.predictor: Predictor | None = None
            self.head: CodeHead | None = None
            self.patch_head: PatchHead | None = None
            self.cold: RandomTokenizer | None = None
            self.tokenizer: Tokenizer | None = None
            self.estimator: Estimator | None = None
            self.classifier: Classifier | None = None
            if config.finetune is not None:
                grid, classes = clip_grid(config), len(config.finetune.classes)
                self.classifier = Classifier(config.finetune.pooling, config.encoder.width, grid, classes)
                return
            self.predictor = Predictor(config.predictor, config.encoder.width, config.encoder.axes)
            if kinds != {"patches"}:
                self.head = CodeHead(config.predictor.width, config.quantizer.num_codebooks, config.quantizer.codebook_size)
            if "patches" in kinds:
                with torch.random.fork_rng(devices=[]):  # on its own, so that the others do not depend on it
                    torch.manual_seed(derive_seed(config.seed, "patch head"))
                    self.patch_head = PatchHead(config.predictor.width, config.encoder.patch_values)
            if "cold" in kinds:
                self.cold = RandomTokenizer(config.cold_start, config.encoder, config.quantizer)
            if kinds & {"tokenizer", "encoder", "joint"}:
                self.tokenizer = Tokenizer(config.encoder, config.quantizer)
                self.estimator = Estimator(
                    config.estimator, config.quantizer.code_dim, config.encoder.width, config.encoder.axes
                )

    @property
    def best_tokenizer(self) -> Tokenizer | RandomTokenizer | None:
        """The tokenizer whose codes stand for the run: the trained one when it is fitted, else the cold-start one."""
        for candidate in (self.tokenizer, self.cold):
            if candidate is not None and bool(candidate.quantizer.fitted):
                return candidate
        return None


def read_networks(folder: RunFolder, config: RunConfig) -> Networks:
    """The networks with the weights that stand for the run, the newest or the chosen ones, in eval mode.

    Raises:
        RunError: there are no weights yet, or they do not fit the configuration.
    """
    if not folder.weights.is_file():
        raise RunError(f"{folder.path} holds no model.safetensors: no checkpoint was written yet; run pretrain with --resume")
    weights, _ = read_weights(folder.best_weights)
    networks = Networks(config)
    held = {name.split(".")[0] for name in weights}
    load_weights(networks, weights, folder.best_weights, LATER_NETWORKS - held)
    return networks.eval().requires_grad_(False)


def load_weights(networks: Networks, weights: dict[str, Tensor], source: Path, new: Collection[str] = ()) -> None:
    """Load ``weights`` exactly.

    Args:
        networks: of the configuration that the weights were written with.
        weights: by name.
        source: where they are from, for errors.
        new: networks that the weights need not hold; they stay as they are.

    Raises:
        RunError: names or shapes differ, with the first that does.
    """
    own = networks.state_dict()
    weights = {name: value for name, value in own.items() if name.split(".")[0] in new} | weights
    for name in [*own, *weights]:
        if name not in weights or name not in own:
            raise RunError(f"{source} does not fit its config.yaml: '{name}' is {'missing' if name in own else 'unknown'}")
        if own[name].shape != weights[name].shape:
            raise RunError(
                f"{source} does not fit its config.yaml: '{name}' is {tuple(weights[name].shape)}, not {tuple(own[name].shape)}"
            )
    networks.load_state_dict(weights)


def model_fingerprint(config: RunConfig, weights: dict[str, Tensor]) -> str:
    """16 hexadecimal digits that change with any weight or any setting that changes codes or embeddings."""
    digest = hashlib.sha256()
    digest.update(json.dumps(content_settings(config.clips), sort_keys=True).encode())
    for part in (config.encoder, config.quantizer, config.cold_start):
        digest.update(fingerprint(part).encode())
    if config.finetune is not None:
        digest.update(
            json.dumps(
                [config.finetune.pooling, config.finetune.classes, config.finetune.exclusive, config.finetune.multi_label]
            ).encode()
        )
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()[:16]


def build_objective(phase: Phase, networks: Networks, config: RunConfig) -> Objective:
    """The objective of a phase on the run's networks, with everything it does not train frozen."""
    networks.requires_grad_(True)
    networks.zero_grad(set_to_none=True)
    encoder, predictor, masks = networks.encoder, networks.predictor, config.masks
    assert predictor is not None
    if phase.kind == "patches":
        assert networks.patch_head is not None
        return MaskedPatches(encoder, predictor, networks.patch_head, masks)
    if phase.kind == "tokenizer":
        assert networks.tokenizer is not None
        assert networks.estimator is not None
        return TokenizerDistillation(encoder, networks.tokenizer, networks.estimator)
    tokenizer = networks.cold if phase.kind == "cold" else networks.tokenizer
    assert tokenizer is not None
    assert networks.head is not None
    codes = MaskedCodes(encoder, predictor, networks.head, tokenizer, masks, config.level_weights)
    if phase.kind != "joint":
        return codes
    assert networks.tokenizer is not None
    assert networks.estimator is not None
    distillation = TokenizerDistillation(encoder, networks.tokenizer, networks.estimator)
    return Joint(codes, distillation, config.joint_weight, config.joint_every_steps)


def start_tokenizer(networks: Networks, config: RunConfig) -> None:
    """Give a tokenizer that was never trained the encoder's weights, when the configuration says so."""
    tokenizer = networks.tokenizer
    if tokenizer is not None and config.tokenizer_start == "encoder" and not bool(tokenizer.quantizer.fitted):
        tokenizer.encoder.load_state_dict(networks.encoder.state_dict())


def renew(networks: Networks, config: RunConfig, phase_index: int) -> None:
    """What begins anew when labels change (:func:`bridle.phases.has_new_labels`): the head of codes always, the predictor and
    the encoder when the configuration says so.
    """
    device = next(networks.parameters()).device
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(config.seed, "renew", phase_index))
        if config.renew == "encoder":
            networks.encoder = Encoder(config.encoder).to(device)
        if config.renew != "head":
            networks.predictor = Predictor(config.predictor, config.encoder.width, config.encoder.axes).to(device)
        networks.head = CodeHead(config.predictor.width, config.quantizer.num_codebooks, config.quantizer.codebook_size).to(
            device
        )
