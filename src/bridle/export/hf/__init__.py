"""Runs for transformers: a model type ``bridle`` with its configuration, model and feature extractor.

::

    import bridle.export.hf
    from transformers import AutoFeatureExtractor, AutoModel

    bridle.export.hf.register()
    model = AutoModel.from_pretrained("exported/")
    extractor = AutoFeatureExtractor.from_pretrained("exported/")

Nothing of transformers is imported before :func:`register` is called.
"""

from __future__ import annotations

from bridle.errors import ConfigError


def register() -> None:
    """Make the Auto classes know runs that were exported; again is no error.

    They are ``AutoConfig``, ``AutoModel`` and ``AutoFeatureExtractor``, for images also ``AutoImageProcessor``, and for
    fine-tuned runs ``AutoModelForAudioClassification`` and its likes for images and video.

    Raises:
        ConfigError: transformers is not installed.
    """
    try:
        from transformers import (
            AutoConfig,
            AutoFeatureExtractor,
            AutoImageProcessor,
            AutoModel,
            AutoModelForAudioClassification,
            AutoModelForImageClassification,
            AutoModelForVideoClassification,
        )
    except ImportError as error:
        raise ConfigError(f"--to hf needs {error.name}: pip install 'bridle[transformers]'") from error
    from bridle.export.hf.configuration import BridleConfig
    from bridle.export.hf.extractor import BridleFeatureExtractor, BridleImageProcessor
    from bridle.export.hf.model import BridleForClassification, BridleModel

    AutoConfig.register(BridleConfig.model_type, BridleConfig, exist_ok=True)
    AutoModel.register(BridleConfig, BridleModel, exist_ok=True)
    for auto in (AutoModelForAudioClassification, AutoModelForImageClassification, AutoModelForVideoClassification):
        auto.register(BridleConfig, BridleForClassification, exist_ok=True)
    AutoFeatureExtractor.register(BridleConfig, BridleFeatureExtractor, exist_ok=True)  # type: ignore[no-untyped-call, unused-ignore]
    processors: dict[str, type] = {"pil": BridleImageProcessor, "torchvision": BridleImageProcessor}
    AutoImageProcessor.register(BridleConfig, image_processor_classes=processors, exist_ok=True)  # type: ignore[no-untyped-call, unused-ignore]
