"""Settings as tests need them."""

from bridle.data.loaders import with_normalisation
from bridle.run import RunConfig


def normalised(config: RunConfig, mean: float, std: float) -> RunConfig:
    """The configuration with mean and deviation set, the same for every channel."""
    channels = config.clip_shape[0]
    return config.with_clips(with_normalisation(config.clips, (mean,) * channels, (std,) * channels))
