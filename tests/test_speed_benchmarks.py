"""Every benchmark of speed runs at a tiny size, and what it tells hangs together; how fast anything is, no test says."""

import importlib.util
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

FOLDER = Path(__file__).parents[1] / "benchmarks"
FIRST = "regression, 1 masks, 1 predicted"


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Any]:
    """Runs a script with arguments, as from its own folder, and returns the document of its last line."""
    monkeypatch.syspath_prepend(str(FOLDER))
    threads = torch.get_num_threads()

    def call(name: str, *arguments: str) -> dict[str, Any]:
        spec = importlib.util.spec_from_file_location(f"benchmark_{name}", FOLDER / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        monkeypatch.setattr(sys, "argv", [f"{name}.py", *arguments])
        module.main()
        document: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
        assert document["benchmark"] == name
        return document

    yield call
    torch.set_num_threads(threads)


def test_training_step(run: Any) -> None:
    rows = run("training_step", "--recipes", "audio-debug", "--clips", "2", "--masks", "1", "2", "--repeats", "1")["rows"]
    by_step = {row["step"]: row for row in rows}
    assert by_step[FIRST]["over_plain_regression"] == 1.0
    assert by_step["regression, 2 masks, 1 predicted"]["over_same_regression"] == 1.0
    assert {"codes, 2 masks, 1 predicted", "codes, 1 masks, 0.25 predicted", "stored codes", "codes of the cold start"} <= set(
        by_step
    )
    for row in rows:
        assert row["seconds_per_view"] == pytest.approx(row["seconds"] / (2 * row["masks"]))


def test_stored_codes_are_the_tokenizers_own(run: Any) -> None:
    from shared.steps import Bench, StoredCodes

    from bridle.objectives.masked import labels_at
    from bridle.objectives.view import draw_view_masks, whole_view
    from bridle.recipes import recipe

    bench = Bench(recipe("audio-debug"), 2, torch.device("cpu"))
    view = whole_view(bench.batch, bench.config.encoder.patch)
    predicted = draw_view_masks(view, bench.config.masks, bench.batch.seeds, bench.device).predicted
    tokenizer = bench.networks.tokenizer
    assert tokenizer is not None
    stored = labels_at(StoredCodes(tokenizer, bench.batch, bench.config), view, predicted)
    assert torch.equal(stored, labels_at(tokenizer, view, predicted))


def test_steps_in_turns_train_only_their_own_part(run: Any) -> None:
    from shared.steps import Bench

    from bridle.recipes import recipe

    bench = Bench(recipe("audio-debug"), 2, torch.device("cpu"))
    encoder_step, tokenizer_step = bench.step("encoder"), bench.step("tokenizer")
    networks = bench.networks

    def moved_by(step: Any) -> set[str]:
        before = {name: value.clone() for name, value in networks.state_dict().items()}
        step()
        return {name.split(".")[0] for name, value in networks.state_dict().items() if not torch.equal(before[name], value)}

    for _ in range(2):
        assert moved_by(encoder_step) == {"encoder", "predictor", "head"}
        assert moved_by(tokenizer_step) == {"tokenizer", "estimator"}


def test_vit_base_step(run: Any) -> None:
    arguments = ("--recipe", "audio-debug", "--clips", "1", "--repeats", "1", "--threads", "1")
    rows = run("vit_base_step", *arguments, "--predictors", "recipe", "cross:16:1:2")["rows"]
    assert [row["phase"] for row in rows] == 2 * ["cold", "tokenizer", "encoder", "patches", "kept labels"]
    for row in rows:
        assert row["seconds_at_reference_rate"] == pytest.approx(row["seconds"] * row["product_rate"] / 2.3e12)
    assert rows[0]["operations"] > rows[5]["operations"]


def test_peer_steps(run: Any) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed (pip install 'bridle[transformers]')")
    arguments = ("--sizes", "debug", "--clips", "1", "--repeats", "1", "--threads", "1", "--kernels", "sdpa")
    rows = run("peer_steps", *arguments)["rows"]
    for medium in ("image", "video"):
        own = {row["step"]: row for row in rows if row["medium"] == medium}
        fastest = [row for row in own.values() if row["fastest_of_theirs"]]
        assert [row["speed_up"] for row in fastest] == [1.0]
        assert fastest[0]["step"].startswith("theirs")
        assert {"regression", "codes", "codes, cold start"} <= set(own)


def test_media_input(run: Any) -> None:
    rows = run("media_input", "--files", "1", "--seconds", "1.5", "--repeats", "1")["rows"]
    assert {(row["medium"], row["job"]) for row in rows if row["job"] == "loader"} == {
        ("audio", "loader"),
        ("image", "loader"),
        ("video", "loader"),
    }
    assert all(row["files_per_core_second"] > 0 for row in rows)


def test_growth(run: Any) -> None:
    arguments = ("--recipe", "audio-debug", "--phases", "cold", "--axes", "levels", "depth", "--repeats", "1", "--processes")
    document = run("growth", *arguments)
    assert {(row["axis"], row["source"]) for row in document["rows"]} == {("levels", "measured"), ("depth", "measured")}
    computed = {(row["phase"], row["gpus"]): row for row in document["audioset"]}
    assert {row["source"] for row in computed.values()} == {"computed"}
    assert computed["tokenizer", 8]["codebook_bytes"] == 4 * (4 * 2 * 256 * 257 + 5 + 2 * 768 + 1)
    assert computed["cold", 8]["operations_per_gpu"] == 8 * computed["cold", 64]["operations_per_gpu"]


@pytest.mark.slow  # starts two processes
def test_growth_with_processes(run: Any) -> None:
    arguments = ("--recipe", "audio-debug", "--phases", "cold", "tokenizer", "--repeats", "1", "--processes", "2")
    rows = run("growth", *arguments)["rows"]
    assert {row["axis"] for row in rows} == {"batch", "seconds", "levels", "codes", "width", "depth", "processes"}
    assert [row["phase"] for row in rows if row["axis"] == "processes"] == ["cold", "tokenizer"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what the script does without a GPU")
def test_gpu_says_that_nothing_was_measured(run: Any) -> None:
    document = run("gpu", "--recipes", "image-debug", "--phases", "encoder", "--repeats", "1", "--rows", "2", "--files", "1")
    assert document["measured_on_gpu"] is False
    assert [row["measured_on_gpu"] for row in document["steps"]] == [False]
    assert len(document["steps"][0]["profile"]) == 2
    assert document["loaders"][0]["medium"] == "image"


def test_quantizer(run: Any) -> None:
    pytest.importorskip("vector_quantize_pytorch", reason="not installed (pip install 'bridle[bench]')")
    document = run("quantizer", "--size", "256", "2", "8", "4", "--repeats", "1", "--device", "cpu")
    assert document["results"][0]["equal_codes"] > 0.99


def test_attention(run: Any) -> None:
    rows = run("attention", "--tokens", "32", "--repeats", "1")["rows"]
    assert {row["precision"] for row in rows} == {"float32", "bfloat16"}
    assert all(row[kind] > 0 for row in rows for kind in ("both ways", "both ways, masked", "forward"))


def test_audio_input(run: Any) -> None:
    document = run("audio_input", "--clips", "1", "--seconds", "1.5", "--rate", "22050", "--repeats", "1")
    assert set(document["clips_per_core_second"]) >= {"decode_audio", "decode_audio + fbank"}
