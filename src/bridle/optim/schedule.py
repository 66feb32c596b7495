"""Learning-rate schedules: pure functions of the step, so that a resumed run needs no schedule state."""

from __future__ import annotations

import math

from bridle.errors import ConfigError


def warmup_cosine(step: int, *, total_steps: int, warmup_steps: int, peak: float, final: float = 0.0) -> float:
    """Linear warm-up to ``peak``, then half a cosine down to ``final`` (Loshchilov & Hutter 2017, without restarts).

    Args:
        step: number of finished steps, from 0. Step ``s`` of the warm-up has ``peak * (s + 1) / warmup_steps``, so the
            first step already learns.
        total_steps: the step at which ``final`` is reached; later steps stay there.
        warmup_steps: length of the warm-up; 0 for none.
        peak: the largest value.
        final: the last value, in [0, peak].

    Raises:
        ConfigError: a value is out of range.
    """
    if step < 0:
        raise ConfigError(f"step is {step}; steps count from 0")
    if total_steps < 1:
        raise ConfigError(f"total_steps is {total_steps}; use at least 1")
    if not 0 <= warmup_steps <= total_steps:
        raise ConfigError(f"warmup_steps is {warmup_steps}; it must lie in [0, total_steps = {total_steps}]")
    if not (math.isfinite(peak) and 0.0 <= final <= peak):
        raise ConfigError(f"peak is {peak} and final {final}; they must be finite with 0 <= final <= peak")
    if step >= total_steps:
        return final
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / (total_steps - warmup_steps)
    return final + (peak - final) * 0.5 * (1.0 + math.cos(math.pi * progress))
