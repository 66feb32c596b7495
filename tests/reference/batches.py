"""Small batches of random clips for tests of objectives and the loop."""

import torch

from bridle.data.batch import Batch, Sample, collate
from bridle.models.encoder import Encoder, EncoderConfig
from bridle.models.predictor import CodeHead, Predictor, PredictorConfig
from bridle.models.tokenizer import ColdStartConfig, Estimator, EstimatorConfig, RandomTokenizer, Tokenizer
from bridle.objectives.masked import MaskedCodes
from bridle.quantize import QuantizerConfig

ENCODER = EncoderConfig(width=16, depth=1, heads=2, patch=(4, 4, 1))
QUANTIZER = QuantizerConfig(num_codebooks=2, codebook_size=8, code_dim=8, kmeans_steps=3, init_sample=4096)


def clips(*frames: int, seed: int = 0) -> list[Sample]:
    """Clips of the given lengths, 8 bands high."""
    generator = torch.Generator().manual_seed(seed)
    return [
        Sample(torch.randn(1, length, 8, 1, generator=generator), length, 100 * seed + i, i) for i, length in enumerate(frames)
    ]


def batch(*frames: int, seed: int = 0) -> Batch:
    """A padded batch of such clips."""
    return collate(clips(*frames, seed=seed), ENCODER.patch, (1, 8, 1))


class Parts:
    """Tiny networks, equal for equal seeds."""

    def __init__(self, seed: int = 0) -> None:
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.encoder = Encoder(ENCODER)
            self.predictor = Predictor(PredictorConfig(width=16, depth=1, heads=2), 16, ENCODER.axes)
            self.head = CodeHead(16, 2, 8)
            self.cold = RandomTokenizer(ColdStartConfig(), ENCODER, QUANTIZER)
            self.tokenizer = Tokenizer(ENCODER, QUANTIZER)
            self.estimator = Estimator(EstimatorConfig(width=16, depth=1, heads=2), 8, 16, ENCODER.axes)

    def masked_codes(self, masks: object, **settings: object) -> MaskedCodes:
        """The encoder phase on fitted cold-start codes."""
        objective = MaskedCodes(self.encoder, self.predictor, self.head, self.cold, masks, **settings)  # type: ignore[arg-type]
        if objective.unprepared():
            objective.prepare([batch(16, 16, 12, 8, seed=s) for s in range(5, 9)], 0)
        return objective
