"""What is in a run folder, finished or not: the figures behind ``bridle inspect``."""

from __future__ import annotations

import contextlib
import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from bridle.config import to_dict
from bridle.errors import RunError
from bridle.networks import Networks, model_fingerprint, read_networks
from bridle.phases import Phase
from bridle.quantize import COLLAPSED_BELOW
from bridle.recipes import RECIPES, recipe
from bridle.run import RunConfig, RunFolder
from bridle.train.checkpoint import latest_checkpoint
from bridle.train.history import read_history
from bridle.train.metrics import FILE_NAME, read_metrics

_EXAMINED = ("probe/", "validation/")  # how the names of what labelled clips say begin
_NOT_TRAINING = (*_EXAMINED, "step", "phase")


@dataclass(frozen=True, slots=True)
class PhaseSummary:
    """One phase.

    Attributes:
        name: as in the metrics, e.g. ``2-tokenizer``.
        length: as configured, e.g. ``10 epochs``.
        steps_done: finished steps.
        steps_total: its length in steps; None for epochs of a length that no finished phase tells.
        last_logged_step: finished steps of the phase at its last line about training; 0 when there is none.
        values: of that line.
        examined_step: finished steps of the phase when labelled clips were looked at last; 0 when never.
        examined: what they said.
    """

    name: str
    length: str
    steps_done: int
    steps_total: int | None
    last_logged_step: int
    values: dict[str, float]
    examined_step: int
    examined: dict[str, float]


@dataclass(frozen=True, slots=True)
class LevelHealth:
    """One level of the codebooks.

    Attributes:
        in_use: share of codes used at least a tenth of uniform.
        perplexity: divided by K.
        residual: energy left after the level as a fraction of the input's, as logged last; None when it was never logged.
    """

    in_use: float
    perplexity: float
    residual: float | None

    @property
    def alarm(self) -> bool:
        """True when the level has collapsed."""
        return self.perplexity < COLLAPSED_BELOW


@dataclass(frozen=True, slots=True)
class RunSummary:
    """A run.

    Attributes:
        path: its folder.
        config: its settings, resolved.
        fingerprint: of model and settings; "" before the first checkpoint.
        step: finished steps of the newest checkpoint, 0 before the first.
        finished: True when every phase has all its steps.
        phases: in their order.
        tokenizer: ``tokenizer`` or ``cold``, whose codes stand for the run; "" when neither is fitted.
        levels: health of its codebooks.
        parameters: trainable numbers of each network.
        checkpoints: names of the checkpoint folders, oldest first.
        num_bytes: on the disk.
        num_quarantined: files in quarantine.
    """

    path: str
    config: RunConfig
    fingerprint: str
    step: int
    finished: bool
    phases: tuple[PhaseSummary, ...]
    tokenizer: str
    levels: tuple[LevelHealth, ...]
    parameters: dict[str, int]
    checkpoints: tuple[str, ...]
    num_bytes: int
    num_quarantined: int

    @property
    def alarms(self) -> list[str]:
        """A line for each level that has collapsed."""
        return [
            f"level {level} has collapsed: perplexity / K is {100 * health.perplexity:.1f} %, below "
            f"{100 * COLLAPSED_BELOW:.0f} %; use fewer codes (--quantizer.codebook-size) or more data"
            for level, health in enumerate(self.levels)
            if health.alarm
        ]


def summarise(run: Path) -> RunSummary:
    """Read a run folder; nothing is changed.

    Raises:
        RunError: it is no run, of another version, or damaged.
    """
    folder = RunFolder(run)
    config = folder.read_config()
    networks = read_networks(folder, config) if folder.weights.exists() else None
    metrics = read_metrics(run) if (run / FILE_NAME).exists() else []
    position = _position(run)
    phases = _phases(config.plan, metrics, position)
    tokenizer, levels = ("", ()) if networks is None else _codebooks(networks, metrics)
    return RunSummary(
        path=str(run),
        config=config,
        fingerprint="" if networks is None else model_fingerprint(config, networks.state_dict()),
        step=position.step,
        finished=all(phase.steps_done == phase.steps_total for phase in phases),
        phases=phases,
        tokenizer=tokenizer,
        levels=levels,
        parameters=_parameters(Networks(config) if networks is None else networks),
        checkpoints=tuple(sorted(path.name for path in (run / "checkpoints").glob("step-*"))),
        num_bytes=_num_bytes(run),
        num_quarantined=_num_lines(folder.quarantine),
    )


def unfinished(run: Path, config: RunConfig) -> str | None:
    """One line that says how far training came and which weights stand for the run; None when it came to its end.

    Also None when it never began, as with weights that were imported.

    Raises:
        RunError: the newest checkpoint does not say where it stands.
    """
    position = _position(run)
    if not position.step or all(phase.steps_done == phase.steps_total for phase in _phases(config.plan, [], position)):
        return None
    total = sum(position.phase_steps)
    path = RunFolder(run).best_weights
    with contextlib.suppress(OSError, SafetensorError), safe_open(path, framework="pt") as file:
        step = (file.metadata() or {}).get("step", position.step)
        chosen = ", which validation chose so far" if path == RunFolder(run).chosen else ""
        return f"training is not finished ({position.step:,} of {total:,} steps): these are the weights of step {step}{chosen}"
    return None  # no weights are left, which is an error of its own


def resume_command(config: RunConfig, run: str) -> str:
    """The command that continues a run, with every setting that differs from its recipe; DATA stands for the recordings.

    Of a fine-tuned run it is the one that it was last made with.
    """
    if config.finetune is not None:
        calls = read_history(Path(run))
        made = f"bridle finetune RUN MANIFEST --label {shlex.quote(config.finetune.label)} --out {shlex.quote(run)}"
        made = calls[-1].command if calls else made
        return made if " --resume" in made else f"{made} --resume"
    if config.recipe not in RECIPES:
        return f"bridle.pretrain(RunFolder(Path({run!r})).read_config(), [DATA], Path({run!r}), resume=True)"
    start, own = _flat(to_dict(recipe(config.recipe))), _flat(to_dict(config))
    # What a run fills in by itself is not a setting of the user.
    filled = {name for name, value in start.items() if value is None or (name == "train.precision" and value == "auto")}
    flags = [
        f"--{name.replace('_', '-')} {' '.join(shlex.quote(str(item)) for item in _items(value))}".rstrip()
        for name, value in own.items()
        if value != start[name] and name not in filled
    ]
    return " ".join(["bridle pretrain", config.recipe, "--data DATA --out", shlex.quote(run), *flags, "--resume"])


@dataclass(frozen=True, slots=True)
class _Position:
    """Where the newest checkpoint stands: steps of the run, number of the phase, steps of it, length of every phase."""

    step: int = 0
    phase: int = 0
    phase_step: int = 0
    phase_steps: tuple[int, ...] = ()


def _position(run: Path) -> _Position:
    path = latest_checkpoint(run)
    if path is None:
        return _Position()
    try:
        state = json.loads((path / "state.json").read_bytes())
        step = int(path.name.removeprefix("step-").partition(".")[0])
        return _Position(step, int(state["phase"]), int(state["phase_step"]), tuple(map(int, state["phase_steps"])))
    except (OSError, KeyError, TypeError, ValueError, RecursionError, OverflowError) as error:
        raise RunError(f"{path}/state.json does not say which phase it belongs to; remove that checkpoint to resume") from error


def _phases(plan: tuple[Phase, ...], metrics: list[dict[str, Any]], position: _Position) -> tuple[PhaseSummary, ...]:
    examined = {str(line["phase"]): line for line in metrics if any(name.startswith(_EXAMINED) for name in line)}
    last = {str(line["phase"]): line for line in metrics if not all(name.startswith(_NOT_TRAINING) for name in line)}
    summaries = []
    for index, phase in enumerate(plan):
        name = f"{index + 1}-{phase.kind}"
        total = position.phase_steps[index] if position.phase_steps else None
        if total is None and phase.unit == "steps":
            total = phase.total_steps(1)
        done = (total or 0) if index < position.phase else position.phase_step if index == position.phase else 0
        before = sum(position.phase_steps[:index])
        logged_step, values = _line(last.get(name), before)
        examined_step, said = _line(examined.get(name), before)
        length = phase.spoken_length + ("" if phase.lr is None else f", lr {phase.lr:g}")
        said = {key: value for key, value in said.items() if key.startswith(_EXAMINED)}
        summaries.append(PhaseSummary(name, length, done, total, logged_step, values, examined_step, said))
    return tuple(summaries)


def _line(line: dict[str, Any] | None, before: int) -> tuple[int, dict[str, float]]:
    """Finished steps of the phase, which begins after ``before``, and the values; (0, {}) without a line."""
    if line is None:
        return 0, {}
    return int(line["step"]) - before, {name: value for name, value in line.items() if name not in ("step", "phase")}


def _codebooks(networks: Networks, metrics: list[dict[str, Any]]) -> tuple[str, tuple[LevelHealth, ...]]:
    tokenizer = networks.best_tokenizer
    if tokenizer is None:
        return "", ()
    trained = tokenizer is networks.tokenizer
    values = {name: float(value) for name, value in tokenizer.quantizer.metrics().items()}
    logged: dict[str, float] = next((line for line in reversed(metrics) if "residual/0" in line), {}) if trained else {}
    levels = (
        LevelHealth(values[f"in_use/{r}"], values[f"perplexity/{r}"], logged.get(f"residual/{r}"))
        for r in range(tokenizer.quantizer.config.num_codebooks)
    )
    return "tokenizer" if trained else "cold", tuple(levels)


def _parameters(networks: Networks) -> dict[str, int]:
    return {name: sum(p.numel() for p in network.parameters()) for name, network in networks.named_children()}


def _num_bytes(run: Path) -> int:
    """Hard links to one file count once."""
    stats = [path.stat() for path in run.rglob("*") if path.is_file()]
    return sum({(stat.st_dev, stat.st_ino): stat.st_size for stat in stats}.values())


def _num_lines(path: Path) -> int:
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in data.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


def _items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
