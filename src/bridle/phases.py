"""The order in which encoder and tokenizer take turns, as data: ``"cold:40, tokenizer:10, encoder:40 lr=2e-4"``."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

from bridle.errors import ConfigError

PhaseKind = Literal["cold", "encoder", "tokenizer", "joint", "patches", "supervised"]
_LABELS = {"cold": "random tokenizer", "encoder": "tokenizer", "joint": "tokenizer", "patches": "patches"}
_ITEM = re.compile(r"([a-z]+):([0-9]+(?:\.[0-9]+)?)(epochs|steps)?(?: +lr=([0-9]+(?:\.[0-9]+)?(?:e-?[0-9]+)?))?")


@dataclass(frozen=True, slots=True)
class Phase:
    """One phase.

    Attributes:
        kind: ``cold``: encoder on the codes of a random tokenizer; ``tokenizer``: tokenizer on the encoder's features;
            ``encoder``: encoder on the tokenizer's codes; ``joint``: both at once; ``patches``: masked-patch regression;
            ``supervised``: encoder and classifier on labels, of fine-tuned runs only.
        length: how long.
        unit: ``epochs`` or ``steps``.
        lr: peak learning rate of this phase; None for its optimiser's.
    """

    kind: PhaseKind
    length: float
    unit: Literal["epochs", "steps"]
    lr: float | None = None

    def __str__(self) -> str:
        """As :func:`parse_phases` reads it."""
        rate = "" if self.lr is None else f" lr={self.lr!r}"
        return f"{self.kind}:{_number(self.length)}{'steps' if self.unit == 'steps' else ''}{rate}"

    @property
    def spoken_length(self) -> str:
        """``1 step``, ``2.5 epochs``."""
        return f"{self.length:g} {self.unit.removesuffix('s') if self.length == 1 else self.unit}"

    def total_steps(self, steps_per_epoch: int) -> int:
        """Its length in steps, at least 1."""
        return max(1, round(self.length * (steps_per_epoch if self.unit == "epochs" else 1)))


def parse_phases(text: str) -> tuple[Phase, ...]:
    """Read ``kind:length[epochs|steps] [lr=RATE]`` items separated by commas; epochs when no unit is given.

    Raises:
        ConfigError: an item that is not of this form, an unknown kind, a length or rate of 0, or an encoder phase before
            any tokenizer phase.
    """
    phases = []
    for item in (part.strip() for part in text.split(",")):
        match = _ITEM.fullmatch(item)
        known = match is not None and match[1] in get_args(PhaseKind)
        if match is None or not known or float(match[2]) == 0 or not 0 < float(match[4] or 1) < math.inf:
            raise ConfigError(
                f"phases: cannot read {item!r}; write kind:length with kind of {', '.join(get_args(PhaseKind))} "
                "and a length in epochs or steps, with its own peak learning rate or without, such as "
                "'cold:40, tokenizer:10, encoder:400steps lr=2e-4'"
            )
        unit = cast("Literal['epochs', 'steps']", match[3] or "epochs")
        phases.append(Phase(cast("PhaseKind", match[1]), float(match[2]), unit, float(match[4]) if match[4] else None))
    kinds = [phase.kind for phase in phases]
    if "encoder" in kinds and not {"tokenizer", "joint"} & set(kinds[: kinds.index("encoder")]):
        raise ConfigError(
            f"phases: an encoder phase needs a tokenizer or joint phase before it, in {text!r}; start with cold:N"
        )
    return tuple(phases)


def has_new_labels(plan: Sequence[Phase], index: int) -> bool:
    """True when phase ``index`` trains the encoder on other labels than the phase that trained it last.

    Labels are other ones when they come from elsewhere (random tokenizer, trained tokenizer, patches), or when a tokenizer
    phase came between. False for a tokenizer phase, and for the first phase that trains the encoder.
    """
    source = _LABELS.get(plan[index].kind)
    trained = [number for number in range(index) if plan[number].kind in _LABELS]
    if source is None or not trained:
        return False
    tokenizer_moved = any(phase.kind == "tokenizer" for phase in plan[trained[-1] : index])
    return _LABELS[plan[trained[-1]].kind] != source or (source == "tokenizer" and tokenizer_moved)


def _number(value: float) -> str:
    return str(int(value)) if value.is_integer() else repr(value)
