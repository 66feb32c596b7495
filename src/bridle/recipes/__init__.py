"""Recipes: functions that return a whole configuration. A recipe's docstring says what it is for and what it costs."""

from __future__ import annotations

from collections.abc import Callable

from bridle.errors import ConfigError
from bridle.recipes.audio import audio_base, audio_demo, audio_small
from bridle.recipes.debug import audio_debug, image_debug, video_debug
from bridle.recipes.image import image_base, image_demo, image_small
from bridle.recipes.video import video_base, video_demo, video_small
from bridle.run import RunConfig

RECIPES: dict[str, Callable[[], RunConfig]] = {
    "audio-debug": audio_debug,
    "audio-demo": audio_demo,
    "audio-small": audio_small,
    "audio-base": audio_base,
    "image-debug": image_debug,
    "image-demo": image_demo,
    "image-small": image_small,
    "image-base": image_base,
    "video-debug": video_debug,
    "video-demo": video_demo,
    "video-small": video_small,
    "video-base": video_base,
}


def recipe(name: str) -> RunConfig:
    """The configuration of a recipe.

    Raises:
        ConfigError: there is no such recipe.
    """
    if name not in RECIPES:
        raise ConfigError(f"there is no recipe '{name}'; choose one of {', '.join(RECIPES)}")
    return RECIPES[name]()
