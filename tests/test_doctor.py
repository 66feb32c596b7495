"""The examination of recordings: what is found, what the recipe makes of it, what is advised."""

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image
from reference.configs import normalised
from reference.sound_files import melody, mux
from reference.video_files import film

from bridle.config import to_dict
from bridle.data.audio import AudioLoader
from bridle.data.batch import valid_steps
from bridle.data.dataset import ClipDataset, batch_loader
from bridle.data.manifest import Entry, Manifest, read_manifest
from bridle.data.medium import AUDIO, IMAGE, VIDEO
from bridle.data.quarantine import BadFile
from bridle.data.sampler import EpochOrder
from bridle.doctor.advice import Finding, advise, projected_bad_ratio
from bridle.doctor.plan import make_plan
from bridle.doctor.report import SECONDS, examine, extent_histogram
from bridle.doctor.scan import Scan, other_media, scan_files
from bridle.doctor.speed import estimate_speed, project, random_batch
from bridle.errors import ConfigError, DataError
from bridle.media.audio import AudioInfo
from bridle.media.image import ImageInfo
from bridle.media.video import VideoInfo
from bridle.recipes import recipe
from bridle.run import RunFolder, clip_grid

CPU = torch.device("cpu")


@pytest.fixture
def folder(tiny_folder, tmp_path):
    return shutil.copytree(tiny_folder, tmp_path / "data")


@pytest.fixture
def config():
    return recipe("audio-debug")


def scan_of(durations, *, rate=16000, bad=(), **found):
    entries = tuple(Entry(f"{i}.wav", f"/none/{i}.wav", duration_seconds=float(d)) for i, d in enumerate(durations))
    infos = tuple(AudioInfo(entry.duration_seconds, rate, 1, "wav/pcm_16") for entry in entries)
    values = {"num_bytes": 1, "num_copies": 0, "num_decoded": 1, "undecodable": (), "blank": (), "cut_short": ()} | found
    return Scan(Manifest(entries, bad=tuple(bad)), infos, **values)


def advice(config, scan, *, memory=10**12, disk=10**12, speed=None):
    return advise(Finding(scan, make_plan(scan.manifest, config), speed, memory, disk), config)


def test_sound_files_are_described_and_ready(folder, config):
    report = examine([folder], config, device=CPU)
    files = report.files
    assert (files.num_files, files.bad, files.num_decoded, files.blank, files.cut_short) == (10, (), 10, (), ())
    assert files.total_seconds == pytest.approx(sum(0.3 + 0.2 * i for i in range(9)) + 5.0, abs=1e-3)
    assert files.kinds["sample rate"] == {"16000 Hz": 4, "44100 Hz": 3, "8000 Hz": 3}
    assert files.kinds["channels"] == {"1": 7, "2": 3}
    assert files.kinds["format"] == {"wav/pcm_16": 8, "flac/pcm_16": 2}
    assert files.quantiles["least"] == pytest.approx(0.3, abs=1e-3)
    assert files.quantiles["most"] == 5.0
    assert files.num_bytes == sum(path.stat().st_size for path in folder.rglob("*.*"))
    assert report.problems == ()
    assert [phase.kind for phase in report.speed.phases] == ["cold", "tokenizer", "encoder", "joint"]
    assert min(phase.step_seconds for phase in report.speed.phases) > 0
    assert json.loads(json.dumps(to_dict(report)))["plan"]["num_clips"] == 10


def test_broken_silent_cut_and_copied_files_are_found(folder):
    x = np.zeros(16000, np.float32)
    soundfile.write(folder / "silent.wav", x, 16000)
    x[4000] = np.nan
    soundfile.write(folder / "nan.wav", x, 16000, subtype="FLOAT")
    (folder / "text.mp3").write_text("no sound")
    (folder / "empty.wav").write_bytes(b"")
    shutil.copy(folder / "b" / "long.wav", folder / "again.wav")
    whole = (folder / "b" / "sound-3.wav").read_bytes()
    (folder / "half.wav").write_bytes(whole[: len(whole) // 2])
    scan = scan_files([folder], num_decoded=None)
    assert {(file.key, file.reason) for file in scan.manifest.bad} == {("text.mp3", "not audio"), ("empty.wav", "empty file")}
    assert scan.undecodable == (BadFile("nan.wav", "non-finite samples"),)
    assert scan.blank == ("silent.wav",)
    assert scan.num_copies == 1
    assert scan.num_decoded == len(scan.manifest) == 14
    assert len(scan.infos) == 14


def test_a_header_that_promises_too_much_is_found(tmp_path):
    sound = 0.1 * np.random.default_rng(0).standard_normal(16000 * 70)
    soundfile.write(tmp_path / "long.flac", sound, 16000)
    soundfile.write(tmp_path / "short.flac", sound[:32000], 16000)
    for name in ("long", "short"):
        content = (tmp_path / f"{name}.flac").read_bytes()
        (tmp_path / f"{name}.flac").write_bytes(content[: len(content) // 2])
    scan = scan_files([tmp_path])
    assert [file.key for file in scan.undecodable] + list(scan.cut_short) == ["long.flac", "short.flac"]


@pytest.mark.parametrize(
    ("colour", "dot", "blank"), [((255, 0, 0), False, True), ((7, 7, 7), False, True), ((255, 0, 0), True, False)]
)
def test_a_picture_of_one_colour_is_blank(tmp_path, colour, dot, blank):
    picture = Image.new("RGB", (40, 30), colour)
    if dot:
        picture.putpixel((3, 4), (255, 0, 1))
    picture.save(tmp_path / "a.png")
    assert scan_files([tmp_path], IMAGE).blank == (("a.png",) if blank else ())


@pytest.mark.parametrize(
    ("shown", "blank"),
    [
        ("r" * 60, True),
        ("b" * 60, True),
        ("b" * 10 + "n" * 40 + "w" * 10, False),
        ("b" * 25 + "n" * 10 + "b" * 25, False),
        ("b" * 30 + "w" * 30, False),
        ("n" * 60, False),
    ],
)
def test_a_film_of_one_colour_is_blank(tmp_path, shown, blank):
    def draw(i, width, height):
        random = np.random.default_rng(i)
        noise = random.integers(0, 256, (height, width, 3)).astype(np.uint8)
        plain = {"r": (255, 0, 0), "b": (0, 0, 0), "w": (255, 255, 255)}.get(shown[i])
        return noise if plain is None else np.broadcast_to(np.array(plain, np.uint8), noise.shape).copy()

    film(tmp_path / "a.mkv", len(shown), codec="ffv1", draw=draw)
    scan = scan_files([tmp_path], VIDEO)
    assert (scan.undecodable, scan.cut_short) == ((), ())
    assert scan.blank == (("a.mkv",) if blank else ())


def test_the_sample_is_seeded_and_bounded(folder):
    soundfile.write(folder / "silent.wav", np.zeros(16000, np.float32), 16000)
    found = {seed: scan_files([folder], num_decoded=3, seed=seed) for seed in range(12)}
    assert {scan.num_decoded for scan in found.values()} == {3}
    assert 0 < sum(len(scan.blank) for scan in found.values()) < 12
    assert found[5].blank == scan_files([folder], num_decoded=3, seed=5).blank
    assert scan_files([folder], num_decoded=0).num_decoded == 0
    with pytest.raises(ConfigError, match="num_decoded is -1"):
        scan_files([folder], num_decoded=-1)


def test_members_of_tars_are_examined(folder, tmp_path):
    import tarfile

    with tarfile.open(tmp_path / "shard.tar", "w") as tar:
        tar.add(folder / "b" / "long.wav", "long.wav")
        tar.add(folder / "b" / "long.wav", "copy.wav")
    scan = scan_files([tmp_path / "shard.tar"])
    assert (len(scan.manifest), scan.num_copies, scan.num_decoded, scan.bad) == (2, 1, 2, ())
    assert scan.num_bytes == 2 * (folder / "b" / "long.wav").stat().st_size


def test_nothing_readable_is_an_error(tmp_path):
    (tmp_path / "text.wav").write_text("no sound")
    with pytest.raises(DataError, match=r"the one file is not readable: text.wav \(not audio\)"):
        scan_files([tmp_path])


def test_plan_equals_what_training_does(folder, config):
    config = replace(config, train=replace(config.train, batch_size=2))
    manifest = read_manifest(folder)
    plan = make_plan(manifest, config)
    loader = AudioLoader(normalised(config, 0.0, 1.0).clips)
    dataset = ClipDataset(manifest, loader, config.seed)
    patch, bands = config.encoder.patch, 4
    order = EpochOrder(dataset.lengths(), 2, loader.crop_frames, patch[0], config.seed)
    options = {"start_step": 0, "rank": 0, "world_size": 1, "num_workers": 0, "patch": patch}
    epoch = list(batch_loader(dataset, order, num_steps=order.steps_per_epoch, **options))
    assert plan.steps_per_epoch == order.steps_per_epoch == len(epoch)
    valid = [int(valid_steps(batch.lengths, patch[0]).sum()) for batch in epoch]
    computed = sum(len(batch) * (batch.inputs.shape[2] // patch[0]) for batch in epoch)
    crop_steps = int(valid_steps(torch.tensor([loader.crop_frames]), patch[0]))
    assert plan.num_patches == sum(valid) * bands
    assert plan.padding_ratio == pytest.approx(1 - sum(valid) / computed)
    assert plan.full_steps == pytest.approx(computed / (2 * crop_steps))
    start = list(batch_loader(dataset, order, num_steps=8, **options))
    assert plan.kmeans_sample == sum(int(valid_steps(batch.lengths, patch[0]).sum()) for batch in start) * bands
    assert plan.seen_ratio == pytest.approx((sum(0.3 + 0.2 * i for i in range(9)) + 2.0) / 15.0, abs=0.02)
    for entry in manifest.entries:
        loader.load(entry, torch.Generator().manual_seed(0))
    assert plan.cacheable_clips == 9
    assert plan.cache_bytes == loader._cache.num_bytes


def test_checkpoints_are_as_large_as_planned(tiny_run, tiny_folder):
    plan = make_plan(read_manifest(tiny_folder), RunFolder(tiny_run).read_config())
    sizes = [
        sum(path.stat().st_size for path in folder.glob("*.safetensors"))
        for folder in (tiny_run / "checkpoints").glob("step-*")
    ]
    assert plan.checkpoint_bytes == pytest.approx(max(sizes), rel=0.15)  # headers weigh in at this size
    assert plan.disk_bytes == 3 * plan.checkpoint_bytes


def test_projection_of_times(config):
    config = replace(config, phases="cold:10, tokenizer:6steps", train=replace(config.train, batch_size=2))
    plan = make_plan(scan_of([2.0] * 8).manifest, config)
    assert (plan.steps_per_epoch, plan.full_steps) == (4, 4.0)
    speed = project(config, plan, {"cold": (2.0, 2), "tokenizer": (3.0, 1)}, 0.5, 0.5, "cpu")
    cold, tokenizer = speed.phases
    assert (cold.num_steps, cold.epoch_seconds, cold.seconds) == (40, 8.0, 80.0)
    assert (tokenizer.num_steps, tokenizer.epoch_seconds, tokenizer.seconds) == (6, 12.0, 18.0)
    assert (speed.read_seconds, speed.reread_seconds, speed.seconds) == (4.0, 0.0, 102.0)
    uncached = replace(plan, cache_limit_bytes=0)
    assert project(config, uncached, {"cold": (2.0, 2), "tokenizer": (3.0, 1)}, 0.5, 0.5, "cpu").seconds == 98.0 + 4.0 * 11.5
    workers = replace(config, train=replace(config.train, num_workers=2))
    assert project(workers, uncached, {"cold": (2.0, 2), "tokenizer": (3.0, 1)}, 0.5, 0.5, "cpu").seconds == 98.0


def test_a_batch_that_takes_too_long_is_timed_in_part(tiny_folder, config):
    manifest = read_manifest(tiny_folder)
    plan = make_plan(manifest, config)
    stages = []
    speed = estimate_speed(
        config, plan, manifest.entries, CPU, budget_seconds=0.0, on_progress=lambda *stage: stages.append(stage)
    )
    assert {phase.num_timed_clips for phase in speed.phases} == {2}
    assert stages[-1] == ("timing steps", 4, 4)
    whole = estimate_speed(config, plan, manifest.entries, CPU, budget_seconds=1e6)
    assert {phase.num_timed_clips for phase in whole.phases} == {config.train.batch_size}


def test_random_batch_has_the_shape_of_a_full_one(config):
    batch = random_batch(config, 3)
    loader = AudioLoader(normalised(config, 0.0, 1.0).clips)
    assert batch.inputs.shape == (3, 1, 192, 64, 1)
    assert 192 - 8 <= loader.crop_frames <= 192 + 7
    assert torch.equal(batch.inputs, random_batch(config, 3).inputs)


def test_problems_stop_the_training(folder, config):
    for i in range(2):
        (folder / f"bad-{i}.wav").write_text("no sound")
    (problem,) = examine([folder], config, speed=False).problems
    assert problem.startswith("2 of 12 files are unreadable (limit 1)")
    quantizer = replace(config.quantizer, codebook_size=4096, init_sample=4096)
    large = replace(config, quantizer=quantizer, train=replace(config.train, max_bad_fraction=0.5))
    (problem,) = examine([folder], large, speed=False).problems
    assert "fewer than their 4096 codes" in problem
    silent = folder / "silent"
    silent.mkdir()
    soundfile.write(silent / "a.wav", np.zeros(16000, np.float32), 16000)
    (problem,) = examine([silent], replace(config, phases="patches:1"), speed=False).problems
    assert problem == "the one decoded file is silent or broken: check how they were made"


def test_good_recordings_need_no_advice():
    scan = scan_of([5.0] * 3000)
    assert advice(recipe("audio-small"), scan) == ()


@pytest.mark.parametrize(
    ("found", "change", "expected"),
    [
        ({"bad": [BadFile("x.wav", "missing")]}, {}, "unreadable files: 1; repair or remove"),
        ({"blank": ("3.wav",), "num_decoded": 7}, {}, "1 of 7 decoded files is silent, such as 3.wav: remove it"),
        ({"cut_short": ("3.wav",), "num_decoded": 7}, {}, "hold less than their header says: 1 of 7, such as 3.wav"),
        ({"num_copies": 12}, {}, "copies of other files (same size, same beginning): 12"),
        ({"num_decoded": 100, "undecodable": (BadFile("3.wav", "x"),) * 5}, {}, "about 5.0 % of all files break"),
        ({"durations": [5.0] * 10}, {}, "--quantizer.codebook-size 16"),
        ({"durations": [5.0] * 10}, {}, '--phases "cold:150, tokenizer:50, encoder:300"'),
        ({"durations": [5.0] * 4000 + [600.0] * 100}, {}, "files longer than 4 crops: 100; an epoch takes one crop of 5 s"),
        ({"durations": [5.0] * 4000 + [0.5] * 1000}, {}, "files shorter than 0.64 s, 4 patches in time: 1,000"),
        ({"rate": 8000}, {}, "use --audio.fbank.sample-rate 8000"),
        ({}, {"memory": 10**8}, "0.1 GB of memory are free"),
        ({}, {"disk": 10**7}, "the disk of this folder has 0.0 GB free"),
        ({"durations": [5.0] * 5000}, {}, "raise --audio.cache-gigabytes"),
    ],
)
def test_advice_names_the_finding_and_the_remedy(found, change, expected):
    scan = scan_of(**({"durations": [5.0] * 3000} | found))
    config = replace(recipe("audio-small"), phases="cold:30, tokenizer:10, encoder:60")
    lines = advice(config, scan, **change)
    assert any(expected in line for line in lines), lines


def test_a_plan_that_goes_over_a_handful_of_files_for_ever_is_told():
    config, few = recipe("audio-small"), scan_of([5.0] * 10)
    (line,) = [line for line in advice(config, few) if "takes in all there is" in line]
    assert "7,800 times" in line
    shorter = re.search(r'--phases "(.*)"', line)[1]
    assert shorter == "cold:961steps, tokenizer:38steps"
    epochs = replace(config, phases="cold:7500.5, tokenizer:0.25")
    for taken in (shorter, re.search(r'--phases "(cold:\d+, tokenizer:0.25)"', " ".join(advice(epochs, few)))[1]):
        assert "takes in" not in " ".join(advice(replace(config, phases=taken), few)), taken
    for enough in ([5.0] * 400, [3600.0] * 10):  # of long files an epoch is one crop each
        assert "takes in" not in " ".join(advice(config, scan_of(enough)))


def test_advice_about_time(config):
    scan = scan_of([2.0] * 3000)
    config = replace(config, phases="cold:10")
    plan = make_plan(scan.manifest, config)
    slow = project(config, plan, {"cold": (100.0, 8)}, 40.0, 40.0, "cpu")
    lines = advise(Finding(scan, plan, slow, None, 10**12), config)
    assert any("days on this machine (cpu)" in line for line in lines)
    uncached = replace(plan, cache_limit_bytes=0)
    reading = project(config, uncached, {"cold": (1.0, 8)}, 1.0, 1.0, "cpu")
    assert any("use --train.num-workers 2" in line for line in advise(Finding(scan, uncached, reading, None, 10**12), config))


def test_some_low_sample_rates_are_told_apart(config):
    scan = scan_of([2.0] * 4)
    scan = replace(scan, infos=(*scan.infos[:3], AudioInfo(2.0, 8000, 1, "wav/pcm_16")))
    assert any("sampled below 16000 Hz and raised to it: 1 of 4" in line for line in advice(config, scan))


def scan_of_pixels(edges, medium="image"):
    entries = tuple(Entry(f"{i}", f"/none/{i}", duration_seconds=2.0, rate_hz=25.0) for i in range(len(edges)))
    if medium == "image":
        infos = tuple(ImageInfo(edge, 2 * edge, "RGB", "PNG") for edge in edges)
    else:
        infos = tuple(VideoInfo(2.0, edge, 2 * edge, 25.0, 50, "h264", "mov") for edge in edges)
    return Scan(Manifest(entries), infos, 1, 0, 1, (), (), ())


@pytest.mark.parametrize(
    ("name", "edges", "expected"),
    [
        ("image-base", [100] * 50, "--image.size 96 --image.decode-size 109"),
        ("image-base", [16] + [200] * 30, "--image.size 192 --image.decode-size 219"),
        ("image-base", [16, 200], "--image.size 192 --image.decode-size 219"),
        ("image-base", [100] * 12 + [500] * 8, "--image.size 96 --image.decode-size 109"),
        ("image-base", [28] * 50, "--image.size 28 --image.decode-size 32 --encoder.patch 1 4 4"),
        ("image-base", [1] * 50, "--image.size 2 --image.decode-size 2 --encoder.patch 1 1 1"),
        ("image-small", [27] * 50, "--image.size 24 --image.decode-size 24"),
        ("image-base", [100] * 10 + [500] * 12, None),
        ("image-base", [16] + [224] * 30, None),
        ("video-base", [120] * 50, "--video.size 112 --video.decode-size 128"),
        ("video-base", [40] * 50, "--video.size 40 --video.decode-size 45 --encoder.patch 2 8 8"),
    ],
)
def test_small_pictures_are_given_a_size_that_fits(name, edges, expected):
    config = recipe(name)
    lines = [line for line in advice(config, scan_of_pixels(edges, config.medium.name)) if "enlarged" in line]
    if expected is None:
        assert lines == []
        return
    (line,) = lines
    assert line.endswith(f"use {expected}")
    values = dict(re.findall(r"--(\S+) ([\d ]+\d|\d)", line))
    clips = replace(
        config.clips,
        size=int(values[f"{config.medium.name}.size"]),
        decode_size=int(values[f"{config.medium.name}.decode-size"]),
    )
    patch = tuple(map(int, values.get("encoder.patch", "").split())) or config.encoder.patch
    changed = replace(config, **{config.medium.name: clips}, encoder=replace(config.encoder, patch=patch))
    assert clip_grid(changed).height >= 2


@pytest.mark.parametrize(
    ("name", "edge", "expected"),
    [
        ("image-small", 133, "--image.size 112 --image.decode-size 128 --encoder.patch 1 8 8"),
        ("video-small", 1080, "--video.size 224 --video.decode-size 256 --encoder.patch 2 16 16"),
        ("image-small", 83, None),
        ("image-base", 600, None),
    ],
)
def test_large_pictures_lose_what_they_show(name, edge, expected):
    lines = [line for line in advice(recipe(name), scan_of_pixels([edge] * 50, name.split("-")[0])) if "become" in line]
    assert [expected in line for line in lines] == ([True] if expected else [])


def test_colour_that_a_recipe_does_not_see_is_named():
    for name, expected in (("image-small", True), ("image-base", False)):
        lines = advice(recipe(name), scan_of_pixels([100] * 50))
        assert any("--image.channels 3 --encoder.channels 3" in line for line in lines) == expected


def test_projection_of_broken_files():
    scan = scan_of([1.0] * 90, bad=[BadFile("x", "y")] * 10, num_decoded=30, undecodable=(BadFile("1.wav", "z"),) * 3)
    assert projected_bad_ratio(scan) == pytest.approx((10 + 9) / 100)
    assert projected_bad_ratio(replace(scan, num_decoded=0, undecodable=())) == pytest.approx(0.1)


def test_histogram_counts_every_file_once():
    seconds = [0.3, 0.5, 0.99, 1.0, 7.0, 7.5]
    found = extent_histogram(seconds, SECONDS)
    assert [count for _, _, count in found] == [1, 2, 1, 0, 0, 2]
    assert found[0][:2] == (0.25, 0.5)
    assert found[-1][:2] == (5, 7.5)
    assert extent_histogram([5.0, 5.0], SECONDS) == ((5, 5.0, 2),)


def test_films_with_sound_are_sounds_and_broken_films_are_not_left_out(tmp_path):
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        mux(tmp_path / name / "film.mp4", "aac", melody(1.0, 16000), 16000, video=True)
    sources = [tmp_path / "one", tmp_path / "two"]
    assert len(scan_files(sources, AUDIO).manifest) == 2
    for name in ("one", "two"):
        (tmp_path / name / "torn.mp4").write_bytes(b"no film")
    scan = scan_files(sources, AUDIO)
    assert len(scan.manifest.bad) == 2 and other_media(sources, scan, AUDIO) == {}
