"""The configuration of a run for transformers."""

from __future__ import annotations

from typing import Any, Literal

from transformers import PreTrainedConfig

from bridle.config import from_dict, to_dict
from bridle.run import RunConfig, clip_grid

INPUT_NAMES = {"audio": "input_values", "image": "pixel_values", "video": "pixel_values"}
"""What transformers calls the clips of a medium."""


class BridleConfig(PreTrainedConfig):  # type: ignore[no-untyped-call, unused-ignore]
    """``config.json`` of an exported run.

    Attributes:
        run: the whole configuration of the run as plain data; None for that of an untrained audio encoder.
        tokenizer: whose codes the model gives: the trained ``tokenizer``'s, or those of the ``cold`` start; None for none.
        fingerprint: of the run.
        bridle_version: that wrote it.
        hidden_size: D, the width of the encoder.
        num_hidden_layers: its depth.
        num_attention_heads: its heads.
        grid: (time, height, width) in patches of a full clip.
    """

    model_type = "bridle"

    run: dict[str, Any] | None = None
    tokenizer: Literal["tokenizer", "cold"] | None = None
    fingerprint: str = ""
    bridle_version: str = ""
    hidden_size: int = 0
    num_hidden_layers: int = 0
    num_attention_heads: int = 0
    grid: list[int] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if self.run is None:
            self.run = to_dict(RunConfig())
        config = self.run_config
        self.hidden_size, self.num_hidden_layers = config.encoder.width, config.encoder.depth
        self.num_attention_heads = config.encoder.heads
        self.grid = list(clip_grid(config).shape)
        super().__post_init__(**kwargs)  # type: ignore[no-untyped-call, unused-ignore]

    @property
    def run_config(self) -> RunConfig:
        """``run`` as the dataclass.

        Raises:
            ConfigError: it is damaged, or of another version of bridle.
        """
        return from_dict(RunConfig, self.run or {})
