"""A run: its configuration, its networks, and its folder on disk."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor, nn

from bridle.config import fingerprint, load_yaml, save_yaml
from bridle.data.audio import AudioConfig
from bridle.errors import ConfigError, RunError
from bridle.masking import MaskConfig
from bridle.models.encoder import Encoder, EncoderConfig
from bridle.models.predictor import CodeHead, PatchHead, Predictor, PredictorConfig
from bridle.models.tokenizer import ColdStartConfig, Estimator, EstimatorConfig, RandomTokenizer, Tokenizer
from bridle.optim.groups import OptimConfig
from bridle.phases import Phase, parse_phases
from bridle.quantize import QuantizerConfig
from bridle.randomness import derive_seed
from bridle.train.checkpoint import read_weights
from bridle.train.loop import TrainConfig

FORMAT_VERSION = 1
"""Version of the run folder. A folder of another version is refused."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run; written whole to ``config.yaml``.

    Attributes:
        recipe: name of the recipe it started from.
        seed: of weights, order, crops, augmentation and masks.
        phases: the turns, e.g. ``"cold:40, tokenizer:10, encoder:40"``, in epochs or steps.
        audio: from file to log-mel.
        encoder: size and patch of the encoder; the tokenizer's ViT has the same size.
        predictor: size and kind of the predictor.
        masks: how patches are hidden.
        quantizer: codebooks of both tokenizers.
        cold_start: the random tokenizer.
        estimator: what the tokenizer phase is trained through.
        level_weights: weight of each level in the encoder's loss; empty for 1 each.
        joint_weight: weight of the tokenizer's losses in a joint phase.
        joint_every: steps from one tokenizer loss to the next in a joint phase.
        fresh_predictor: start every encoder phase after the first with a new predictor; False renews only its head.
        encoder_optim: optimiser of cold, encoder, joint and patches phases.
        tokenizer_optim: optimiser of tokenizer phases.
        train: batch size, precision, periods.
        format_version: of the run folder.

    Raises:
        ConfigError: parts that do not fit together.
    """

    recipe: str = "custom"
    seed: int = 0
    phases: str = "cold:40, tokenizer:10, encoder:40"
    audio: AudioConfig = field(default_factory=AudioConfig)
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    masks: MaskConfig = field(default_factory=MaskConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    cold_start: ColdStartConfig = field(default_factory=ColdStartConfig)
    estimator: EstimatorConfig = field(default_factory=EstimatorConfig)
    level_weights: tuple[float, ...] = ()
    joint_weight: float = 0.2
    joint_every: int = 4
    fresh_predictor: bool = True
    encoder_optim: OptimConfig = field(default_factory=OptimConfig)
    tokenizer_optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=2e-4))
    train: TrainConfig = field(default_factory=TrainConfig)
    format_version: int = FORMAT_VERSION

    def __post_init__(self) -> None:
        parse_phases(self.phases)
        mels, rows = self.audio.fbank.num_mels, self.encoder.patch[1]
        if mels % rows:
            raise ConfigError(
                f"audio.fbank.num_mels={mels} must be a multiple of the patch's {rows} bands (encoder.patch)"
            )
        levels = self.quantizer.num_codebooks
        if self.level_weights and len(self.level_weights) != levels:
            raise ConfigError(
                f"level_weights has {len(self.level_weights)} values; quantizer.num_codebooks={levels} needs as many"
            )

    @property
    def plan(self) -> tuple[Phase, ...]:
        """The phases, parsed."""
        return parse_phases(self.phases)


class Networks(nn.Module):
    """The networks that a run's phases need, under the names they have in ``model.safetensors``.

    ``tokenizer`` and ``estimator`` exist when a phase trains them, ``cold`` when a phase starts cold, ``patch_head`` for regression.
    """

    def __init__(self, config: RunConfig) -> None:
        super().__init__()
        kinds = {phase.kind for phase in config.plan}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive_seed(config.seed, "networks"))
            self.encoder = Encoder(config.encoder)
            self.predictor = Predictor(config.predictor, config.encoder.width, config.encoder.axes)
            self.head: CodeHead | None = None
            self.patch_head: PatchHead | None = None
            self.cold: RandomTokenizer | None = None
            self.tokenizer: Tokenizer | None = None
            self.estimator: Estimator | None = None
            if kinds != {"patches"}:
                self.head = CodeHead(
                    config.predictor.width, config.quantizer.num_codebooks, config.quantizer.codebook_size
                )
            if "patches" in kinds:
                self.patch_head = PatchHead(config.predictor.width, config.encoder.patch_values)
            if "cold" in kinds:
                self.cold = RandomTokenizer(config.cold_start, config.encoder.patch_values, config.quantizer)
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


@dataclass(frozen=True)
class RunFolder:
    """Paths inside a run folder."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved configuration."""
        return self.path / "config.yaml"

    @property
    def weights(self) -> Path:
        """The newest consolidated weights."""
        return self.path / "model.safetensors"

    @property
    def quarantine(self) -> Path:
        """The list of unreadable files."""
        return self.path / "quarantine.jsonl"

    def exists(self) -> bool:
        """True when a run was started here."""
        return self.config.exists()

    def read_config(self) -> RunConfig:
        """The run's configuration.

        Raises:
            RunError: there is no run here, or it was written by another version.
        """
        if not self.config.is_file():
            raise RunError(
                f"{self.path} is not a run folder: it has no config.yaml; give the folder named by 'pretrain --out'"
            )
        import yaml

        try:
            version = (yaml.safe_load(self.config.read_text(encoding="utf-8")) or {}).get("format_version")
        except (yaml.YAMLError, AttributeError, UnicodeDecodeError) as error:
            raise RunError(
                f"{self.config} is damaged: it is not a YAML mapping; restore it or start a new run"
            ) from error
        if version != FORMAT_VERSION:
            raise RunError(
                f"{self.path} was written in run format {version}; this bridle reads format {FORMAT_VERSION}; "
                "use the version of bridle that wrote it"
            )
        return load_yaml(RunConfig, self.config)

    def write_config(self, config: RunConfig) -> None:
        """Write the resolved configuration."""
        self.path.mkdir(parents=True, exist_ok=True)
        save_yaml(config, self.config)

    def read_networks(self, config: RunConfig) -> tuple[Networks, dict[str, str]]:
        """The networks with their newest weights, in eval mode, and the weights' metadata.

        Raises:
            RunError: there are no weights yet, or they do not fit the configuration.
        """
        if not self.weights.is_file():
            raise RunError(
                f"{self.path} holds no model.safetensors: no checkpoint was written yet; run pretrain with --resume"
            )
        weights, metadata = read_weights(self.weights)
        networks = Networks(config)
        load_weights(networks, weights, self.weights)
        return networks.eval().requires_grad_(False), metadata


def load_weights(networks: Networks, weights: dict[str, Tensor], source: Path) -> None:
    """Load ``weights`` exactly.

    Raises:
        RunError: names or shapes differ, with the first that does.
    """
    own = networks.state_dict()
    for name in [*own, *weights]:
        if name not in weights or name not in own:
            raise RunError(
                f"{source} does not fit its config.yaml: '{name}' is {'missing' if name in own else 'unknown'}"
            )
        if own[name].shape != weights[name].shape:
            raise RunError(
                f"{source} does not fit its config.yaml: '{name}' is {tuple(weights[name].shape)}, not {tuple(own[name].shape)}"
            )
    networks.load_state_dict(weights)


def model_fingerprint(config: RunConfig, weights: dict[str, Tensor]) -> str:
    """16 hexadecimal digits that change with any weight or any setting that changes codes or embeddings."""
    import hashlib

    digest = hashlib.sha256()
    for part in (config.audio, config.encoder, config.quantizer):
        digest.update(fingerprint(part).encode())
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.flatten().view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()[:16]


def with_normalisation(config: RunConfig, mean: float, std: float) -> RunConfig:
    """The configuration with the data's statistics filled in."""
    return dataclasses.replace(config, audio=dataclasses.replace(config.audio, mean=mean, std=std))
