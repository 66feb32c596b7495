"""What to do about what was found: one line each, with the flag of ``bridle pretrain`` that does it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from bridle.doctor.plan import Plan
from bridle.doctor.scan import Scan
from bridle.doctor.speed import Speed
from bridle.media.audio import AudioInfo
from bridle.media.image import ImageInfo
from bridle.run import RunConfig
from bridle.wording import count

PATCHES_PER_CODE = 100
"""Patches in an epoch for each code of a codebook, below which codes are learnt from too little."""
FEW_STEPS = 500
MANY_EPOCHS = 1000
"""Of the whole plan, counted by what they see; the recipes were made for some dozens to hundreds."""
LONG_CROPS = 4
SEEN_LITTLE = 0.5
MUCH_PADDING = 0.15
SHORT_STEPS = 4
"""Time steps of patches in a clip below which prediction from the rest has little to go by."""
FEW_PATCHES = 4
"""The same for patches along an edge of a picture."""
SMALL_EDGE = 0.1
"""Share of the files whose edges may stay below an advised size, so that a single icon does not decide."""
MUCH_LARGER = 3
"""Files so many times larger than what a recipe makes of them lose most of what they show."""
LARGEST_SIZE = 224
GREY_MODES = ("1", "L", "LA", "La", "I", "F", "I;16", "I;16B", "I;16L")


BLANK = {"audio": "silent", "image": "of one colour", "video": "of one colour"}
"""What a file of a medium is called that holds nothing."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What advice is drawn from; memory is None where it is not known."""

    scan: Scan
    plan: Plan
    speed: Speed | None
    free_memory_bytes: int | None
    free_disk_bytes: int


def advise(found: Finding, config: RunConfig) -> tuple[str, ...]:
    """All advice that applies, the gravest first."""
    rules: tuple[Callable[[Finding, RunConfig], Iterator[str]], ...] = (_files, _amount, _lengths, _rates, _sizes, _machine)
    return tuple(line for rule in rules for line in rule(found, config))


def projected_bad_ratio(scan: Scan) -> float:
    """Share of all files that is unreadable if the files that were not decoded break as often as those that were."""
    breaking = len(scan.undecodable) / scan.num_decoded if scan.num_decoded else 0.0
    return (len(scan.manifest.bad) + breaking * len(scan.manifest)) / scan.manifest.num_files


def _files(found: Finding, config: RunConfig) -> Iterator[str]:
    scan, limit = found.scan, config.train.max_bad_fraction
    sampled = scan.num_decoded < len(scan.manifest)
    if scan.bad:
        yield (
            f"unreadable files: {len(scan.bad):,}; repair or remove them, training passes over up to "
            f"{100 * limit:g} % of the files{' and over a single one' if limit else ''} (--train.max-bad-fraction)"
        )
    if scan.undecodable and sampled and projected_bad_ratio(scan) > limit:
        yield (
            f"about {100 * projected_bad_ratio(scan):.1f} % of all files break when they are decoded, to judge by "
            f"{scan.num_decoded} of them: 'bridle doctor --all' lists every one"
        )
    if scan.blank:
        kind = BLANK[config.medium.name]
        which = f"{len(scan.blank)} of {scan.num_decoded} decoded files {'is' if len(scan.blank) == 1 else 'are'} {kind}"
        yield f"{which}, such as {scan.blank[0]}: remove {'it' if len(scan.blank) == 1 else 'them'}"
    if scan.cut_short:
        yield (
            f"decoded files that hold less than their header says: {len(scan.cut_short)} of {scan.num_decoded}, such as "
            f"{scan.cut_short[0]}; they were cut off while being copied or written: fetch them again"
        )
    if scan.num_copies:
        yield (
            f"copies of other files (same size, same beginning): {scan.num_copies:,}; remove them, "
            "or keep them on one side of a split when evaluating"
        )


def _amount(found: Finding, config: RunConfig) -> Iterator[str]:
    plan, size = found.plan, config.quantizer.codebook_size
    total = sum(phase.total_steps(plan.steps_per_epoch) for phase in config.plan)
    if plan.num_patches < PATCHES_PER_CODE * size:
        fitting = 2 ** max(2, int(math.log2(max(1, plan.num_patches / PATCHES_PER_CODE))))
        yield (
            f"{plan.num_patches:,} patches are few for codebooks of {size} codes (better {PATCHES_PER_CODE} patches for each): "
            f"add {config.medium.nouns}, or use --quantizer.codebook-size {min(size, fitting)}"
        )
    if total < FEW_STEPS:
        yield (
            f"the whole plan makes {count(total, 'training step')}, and an encoder learns little in fewer than {FEW_STEPS}: "
            f'ask for more epochs, such as --phases "{_stretched(config, FEW_STEPS / total)}", or a smaller '
            "--train.batch-size"
        )
    times = total / plan.steps_per_epoch * plan.seen_ratio
    if times > MANY_EPOCHS:
        yield (
            f"the whole plan takes in all there is {times:,.0f} times: add {config.medium.nouns}, or save the time by "
            f'--phases "{_stretched(config, MANY_EPOCHS / times)}"'
        )


def _stretched(config: RunConfig, factor: float) -> str:
    """The phases made longer by at least a factor above 1, or shorter by at least one below, in whole units."""
    if factor > 1:
        lengths = [phase.length * math.ceil(factor) for phase in config.plan]
    else:
        lengths = [min(phase.length, max(1.0, float(math.floor(phase.length * factor)))) for phase in config.plan]
    return ", ".join(str(dataclasses.replace(phase, length=new)) for phase, new in zip(config.plan, lengths, strict=True))


def _lengths(found: Finding, config: RunConfig) -> Iterator[str]:
    plan, entries, crop = found.plan, found.scan.manifest.entries, found.plan.crop_seconds
    num_long = sum(entry.duration_seconds > LONG_CROPS * crop for entry in entries)
    if num_long and plan.seen_ratio < SEEN_LITTLE:
        yield (
            f"files longer than {LONG_CROPS} crops: {num_long:,}; an epoch takes one crop of {crop:g} s from each file "
            f"and gets to {100 * plan.seen_ratio:.0f} % of them: "
            + (
                _more_of_films(config)
                if config.video
                else f"cut long files into pieces of about {2 * crop:g} s, or ask for more epochs"
            )
        )
    step = config.encoder.patch[0] * config.audio.fbank.hop_seconds if config.audio is not None else 0.0
    num_short = sum(entry.duration_seconds < SHORT_STEPS * step for entry in entries)
    if num_short > 0.1 * len(entries):
        yield (
            f"files shorter than {SHORT_STEPS * step:.2f} s, {SHORT_STEPS} patches in time: {num_short:,}; little is left "
            "in them to predict masked patches from: join them, or use shorter patches, such as "
            f"--encoder.patch {max(1, config.encoder.patch[0] // 2)} {config.encoder.patch[1]} 1"
        )
    if plan.padding_ratio > MUCH_PADDING:
        yield (
            f"{100 * plan.padding_ratio:.0f} % of the computed patches are padding, because clips of very different length "
            "share the few batches: a smaller --train.batch-size or more files lower it"
        )


def _more_of_films(config: RunConfig) -> str:
    assert config.video is not None
    return f"ask for more epochs, or for frames further apart, such as --video.stride {2 * config.video.stride}"


def _rates(found: Finding, config: RunConfig) -> Iterator[str]:
    if config.audio is None:
        return
    rate = config.audio.fbank.sample_rate
    low = [info.sample_rate for info in found.scan.infos if isinstance(info, AudioInfo) and info.sample_rate < rate]
    if not low:
        return
    if len(low) == len(found.scan.infos):
        yield (
            f"all files are sampled below {rate} Hz and are raised to it, so the upper mel bands hold nothing: "
            f"use --audio.fbank.sample-rate {max(low)}"
        )
    else:
        yield (
            f"files sampled below {rate} Hz and raised to it: {len(low):,} of {len(found.scan.infos):,}; their "
            "upper mel bands hold nothing, and the encoder may learn to tell them from the others by that"
        )


def _sizes(found: Finding, config: RunConfig) -> Iterator[str]:
    pixels = config.image or config.video
    if pixels is None:
        return
    edges = [min(info.width, info.height) for info in found.scan.infos if not isinstance(info, AudioInfo)]
    small = sum(edge < pixels.size for edge in edges)
    if small > 0.5 * len(edges):
        name, (time, *places) = config.medium.name, config.encoder.patch
        size, patch = _fitting_size(int(np.quantile(edges, SMALL_EDGE, method="higher")), places)
        yield (
            f"{config.medium.nouns} with an edge below {pixels.size} pixels, which are enlarged to it: {small:,} of "
            f"{len(edges):,}; use --{name}.size {size} --{name}.decode-size {size * pixels.decode_size // pixels.size}"
            + (f" --encoder.patch {time} {patch[0]} {patch[1]}" if patch != places else "")
        )
    median = int(np.median(edges)) if edges else 0
    if median >= MUCH_LARGER * pixels.size:
        size, name = min(LARGEST_SIZE, median * 7 // 8) // 16 * 16, config.medium.name
        edge = 16 if size >= 10 * 16 else 8
        yield (
            f"{config.medium.nouns} of about {median} pixels become {pixels.size} x {pixels.size}; where details matter, use "
            f"--{name}.size {size} --{name}.decode-size {size * 8 // 7} "
            f"--encoder.patch {config.encoder.patch[0]} {edge} {edge}, which takes longer"
        )
    modes = [info.mode for info in found.scan.infos if isinstance(info, ImageInfo)]
    coloured = sum(mode not in GREY_MODES for mode in modes)
    if pixels.channels == 1 and coloured > 0.5 * max(1, len(modes)):
        yield (
            f"pictures in colour: {coloured:,} of {len(modes):,}, and the recipe sees grey; where colour matters, use "
            "--image.channels 3 --encoder.channels 3"
        )


def _fitting_size(edge: int, patch: list[int]) -> tuple[int, list[int]]:
    """The largest size up to ``edge`` that is a whole number of patches, at least 2, and the patch (height, width).

    The patch is halved as long as there would be few along the edge.
    """
    while edge // math.lcm(*patch) < FEW_PATCHES and max(patch) > 1:
        patch = [max(1, length // 2) for length in patch]
    unit = math.lcm(*patch)
    return max(2, edge // unit) * unit, patch


def _machine(found: Finding, config: RunConfig) -> Iterator[str]:
    plan, speed, memory = found.plan, found.speed, found.free_memory_bytes
    limit = plan.cache_limit_bytes
    if plan.cache_bytes > limit and not config.train.num_workers:
        yield (
            f"files need {plan.cache_bytes / 1e9:.2f} GB of memory to be decoded once only, and the limit is "
            f"{limit / 1e9:g} GB: raise --{config.medium.name}.cache-gigabytes, or use --train.num-workers to decode beside "
            "the training"
        )
    needed = min(plan.cache_bytes, limit) + plan.memory_bytes
    if memory is not None and needed > 0.8 * memory:
        yield (
            f"weights, optimiser and cache need {needed / 1e9:.1f} GB and {memory / 1e9:.1f} GB of memory are free: lower "
            f"--{config.medium.name}.cache-gigabytes or choose a smaller recipe"
        )
    if plan.disk_bytes > found.free_disk_bytes:
        yield (
            f"the checkpoints need {plan.disk_bytes / 1e9:.1f} GB and the disk of this folder has "
            f"{found.free_disk_bytes / 1e9:.1f} GB free: write the run to another disk"
        )
    if speed is None:
        return
    slowest = max(phase.epoch_seconds for phase in speed.phases)
    if speed.reread_seconds > 0.5 * slowest and not config.train.num_workers:
        yield "reading the files takes more than half as long as training on them: use --train.num-workers 2 or more"
    if speed.seconds > 86400:
        yield (
            f"the whole plan would take about {speed.seconds / 86400:.0f} days on this machine ({speed.device}): "
            "use a faster one, a smaller recipe or fewer epochs"
        )
