"""A run: its configuration, its networks, and its folder on disk."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro.conf

from bridle.config import LATER, load_yaml, read_yaml, to_yaml
from bridle.data.audio import AudioConfig
from bridle.data.batch import valid_steps
from bridle.data.image import ImageConfig
from bridle.data.loaders import ClipConfig, build_loader, plain
from bridle.data.medium import MEDIA, Medium
from bridle.data.video import VideoConfig
from bridle.errors import ConfigError, RunError
from bridle.files import explain_write_error, write_atomically
from bridle.grid import PatchGrid
from bridle.masking import MaskConfig
from bridle.models.encoder import EncoderConfig
from bridle.models.predictor import PredictorConfig
from bridle.models.tokenizer import ColdStartConfig, EstimatorConfig, check_cold_start
from bridle.objectives.supervised import FinetuneConfig
from bridle.optim.groups import OptimConfig
from bridle.paths import check_run
from bridle.phases import Phase, parse_phases
from bridle.quantize import QuantizerConfig
from bridle.train.loop import TrainConfig

FORMAT_VERSION = 3
"""Version of the run folder. A folder of another version is refused."""


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run; written whole to ``config.yaml``.

    Attributes:
        recipe: name of the recipe it started from.
        seed: of weights, order, crops, augmentation and masks.
        phases: the turns, e.g. ``"cold:40, tokenizer:10, encoder:40"``, in epochs or steps.
        audio: from sound file to log-mel; None for a run on another medium. One of the three is set.
        image: from picture to pixels.
        video: from film to pixels.
        encoder: size and patch of the encoder; the tokenizer's ViT has the same size.
        predictor: size and kind of the predictor.
        masks: how patches are masked.
        quantizer: codebooks of both tokenizers.
        cold_start: the random tokenizer.
        estimator: what the tokenizer phase is trained through.
        level_weights: weight of each level in the encoder's loss; empty for 1 each.
        joint_weight: weight of the tokenizer's losses in a joint phase.
        joint_every_steps: steps from one tokenizer loss to the next in a joint phase.
        tokenizer_start: weights of the tokenizer's ViT when its first tokenizer phase begins: the ``encoder``'s, or ``random``.
        renew: what starts anew when a phase trains the encoder on other labels than before: the ``head`` that gives the codes'
            logits, also the ``predictor``, or also the ``encoder``, so that what was learnt lives on in the tokenizer alone.
        encoder_optim: optimiser of cold, encoder, joint and patches phases.
        tokenizer_optim: optimiser of tokenizer phases.
        train: batch size, precision, periods.
        finetune: how the encoder learns classes; None for a pretrained run.
        format_version: of the run folder.

    Raises:
        ConfigError: parts that do not fit together.
    """

    recipe: Annotated[str, tyro.conf.Suppress] = "custom"
    seed: int = 0
    phases: str = "cold:40, tokenizer:10, encoder:40"
    audio: AudioConfig | None = field(default_factory=AudioConfig)
    image: ImageConfig | None = None
    video: VideoConfig | None = None
    encoder: EncoderConfig = field(default_factory=EncoderConfig)
    predictor: PredictorConfig = field(default_factory=PredictorConfig)
    masks: MaskConfig = field(default_factory=MaskConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    cold_start: ColdStartConfig = field(default_factory=ColdStartConfig)
    estimator: EstimatorConfig = field(default_factory=EstimatorConfig)
    level_weights: tuple[float, ...] = ()
    joint_weight: float = 0.2
    joint_every_steps: int = 4
    tokenizer_start: Literal["encoder", "random"] = "encoder"
    renew: Literal["head", "predictor", "encoder"] = "predictor"
    encoder_optim: OptimConfig = field(default_factory=OptimConfig)
    tokenizer_optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=2e-4))
    train: TrainConfig = field(default_factory=TrainConfig)
    finetune: Annotated[FinetuneConfig | None, tyro.conf.Suppress] = field(default=None, metadata=LATER)
    format_version: Annotated[int, tyro.conf.Suppress] = FORMAT_VERSION

    def __post_init__(self) -> None:
        if self.format_version != FORMAT_VERSION:
            raise ConfigError(f"format_version={self.format_version} is not a setting; this bridle writes {FORMAT_VERSION}")
        supervised = [phase.kind == "supervised" for phase in parse_phases(self.phases)]
        if any(each != (self.finetune is not None) for each in supervised):
            raise ConfigError(
                f"phases {self.phases!r}: a fine-tuned run has a supervised phase alone, and others have none; "
                "bridle finetune makes it"
            )
        given = [name for name in MEDIA if getattr(self, name) is not None]
        if len(given) != 1:
            raise ConfigError(
                f"set one of {', '.join(MEDIA)}, and leave the others None; {' and '.join(given) or 'none'} is set"
            )
        if not 0 <= self.joint_weight < math.inf or self.joint_every_steps < 1:
            raise ConfigError(
                f"joint_weight={self.joint_weight} must be finite and at least 0, and "
                f"joint_every_steps={self.joint_every_steps} at least 1"
            )
        self._check_patch()
        check_cold_start(self.cold_start, self.encoder)
        levels = self.quantizer.num_codebooks
        if self.level_weights and len(self.level_weights) != levels:
            raise ConfigError(
                f"level_weights has {len(self.level_weights)} values; quantizer.num_codebooks={levels} needs as many"
            )

    def _check_patch(self) -> None:
        """A full clip is a whole number of patches in height and width, and has the encoder's channels."""
        channels, height, width = self.clip_shape
        _, rows, columns = self.encoder.patch
        if height % rows or width % columns:
            raise ConfigError(
                f"encoder.patch={self.encoder.patch} must divide the clip's height {height} and width {width} "
                f"({'audio.fbank.num_mels' if self.audio else f'{self.medium.name}.size'})"
            )
        if self.image is not None and self.encoder.patch[0] != 1:
            raise ConfigError(f"encoder.patch={self.encoder.patch} must begin with 1 for images, which have no time")
        if self.encoder.channels != channels:
            raise ConfigError(
                f"encoder.channels={self.encoder.channels} must be the clip's {channels}: set encoder.channels"
                + ("" if self.audio else f" and {self.medium.name}.channels alike")
            )

    @property
    def clips(self) -> ClipConfig:
        """The settings of the front end: the one of ``audio``, ``image`` and ``video`` that is set."""
        clips = self.audio or self.image or self.video
        assert clips is not None
        return clips

    @property
    def medium(self) -> Medium:
        """What the run is made of."""
        return next(medium for name, medium in MEDIA.items() if getattr(self, name) is not None)

    @property
    def clip_shape(self) -> tuple[int, int, int]:
        """(C, H, W) of what the encoder sees."""
        if self.audio is not None:
            return (1, self.audio.fbank.num_mels, 1)
        pixels = self.image or self.video
        assert pixels is not None
        return (pixels.channels, pixels.size, pixels.size)

    def with_clips(self, clips: ClipConfig) -> RunConfig:
        """The configuration with other settings of its front end."""
        changed: dict[str, Any] = {self.medium.name: clips}
        return dataclasses.replace(self, **changed)

    @property
    def plan(self) -> tuple[Phase, ...]:
        """The phases, parsed."""
        return parse_phases(self.phases)


def clip_grid(config: RunConfig) -> PatchGrid:
    """The grid of patches of a full clip."""
    _, height, width = config.clip_shape
    steps = int(valid_steps(torch.tensor([build_loader(plain(config.clips)).crop_frames]), config.encoder.patch[0]))
    return PatchGrid(steps, height // config.encoder.patch[1], width // config.encoder.patch[2])


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
    def chosen(self) -> Path:
        """The weights that the validation clips of a fine-tuned run chose; none without such clips."""
        return self.path / "chosen.safetensors"

    @property
    def best_weights(self) -> Path:
        """The chosen weights where there are any, else the newest."""
        return self.chosen if self.chosen.is_file() else self.weights

    @property
    def quarantine(self) -> Path:
        """The list of unreadable files."""
        return self.path / "quarantine.jsonl"

    @property
    def index(self) -> Path:
        """The files it learns from, as they were listed when it began."""
        return self.path / "index.parquet"

    def exists(self) -> bool:
        """True when a run was started here."""
        return self.config.exists()

    def read_config(self) -> RunConfig:
        """The run's configuration.

        Raises:
            RunError: there is no run here, or only those of folds below it, or it was written by another version.
        """
        check_run(self.path)
        try:
            version = (read_yaml(self.config) or {}).get("format_version")
        except (ConfigError, AttributeError) as error:
            raise RunError(f"{self.config} is damaged: it is not a YAML mapping; restore it or start a new run") from error
        if version != FORMAT_VERSION:
            raise RunError(
                f"{self.path} was written in run format {version}; this bridle reads format {FORMAT_VERSION}; "
                "use the version of bridle that wrote it"
            )
        return load_yaml(RunConfig, self.config)

    def write_config(self, config: RunConfig) -> None:
        """Write the resolved configuration.

        Raises:
            RunError: the folder cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_atomically(self.config, to_yaml(config))
        except OSError as error:
            raise RunError(explain_write_error(error, self.path, "config.yaml")) from error
