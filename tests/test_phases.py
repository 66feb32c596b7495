"""Phases as data."""

import pytest

from bridle.errors import ConfigError
from bridle.phases import Phase, has_new_labels, parse_phases


def test_phases_are_read_in_epochs_and_steps() -> None:
    assert parse_phases("cold:40, tokenizer:2.5epochs,encoder:300steps lr=2e-4") == (
        Phase("cold", 40.0, "epochs"),
        Phase("tokenizer", 2.5, "epochs"),
        Phase("encoder", 300.0, "steps", 2e-4),
    )


@pytest.mark.parametrize("text", ["cold:40, tokenizer:2.5, encoder:300steps lr=0.0002", "patches:7steps", "cold:3 lr=1e-05"])
def test_a_phase_is_written_as_it_is_read(text: str) -> None:
    assert ", ".join(str(phase) for phase in parse_phases(text)) == text


def test_lengths_in_steps() -> None:
    assert Phase("cold", 2.5, "epochs").total_steps(10) == 25
    assert Phase("cold", 0.01, "epochs").total_steps(10) == 1
    assert Phase("cold", 7, "steps").total_steps(10) == 7


@pytest.mark.parametrize(
    "text",
    [
        "",
        "cold",
        "cold:0",
        "cold:-3",
        "warm:3",
        "cold:3minutes",
        "encoder:4",
        "cold:4, encoder:4",
        "cold:1,,cold:2",
        "cold:4 lr=0",
        "cold:4 lr=.",
        "cold:4 lr=1e999",
        "cold:4 lr",
    ],
)
def test_nonsense_is_explained(text: str) -> None:
    with pytest.raises(ConfigError, match="phases"):
        parse_phases(text)


@pytest.mark.parametrize(
    ("text", "new"),
    [
        ("cold:1, tokenizer:1, encoder:1, tokenizer:1, encoder:1", [False, False, True, False, True]),
        ("cold:1, tokenizer:1, encoder:1 lr=1e-3, encoder:1 lr=1e-4", [False, False, True, False]),
        ("cold:1, joint:1, joint:1, encoder:1", [False, True, False, False]),
        ("cold:1, tokenizer:1, cold:1, encoder:1, cold:1", [False, False, False, True, True]),
        ("patches:1, patches:1, cold:1, patches:1", [False, False, True, True]),
        ("tokenizer:1, encoder:1", [False, False]),
    ],
)
def test_labels_are_new_when_they_come_from_elsewhere_or_a_tokenizer_was_trained(text: str, new: list[bool]) -> None:
    plan = parse_phases(text)
    assert [has_new_labels(plan, index) for index in range(len(plan))] == new


def test_lengths_are_spoken():
    spoken = [phase.spoken_length for phase in parse_phases("cold:1, tokenizer:2.5, encoder:1steps, joint:400steps")]
    assert spoken == ["1 epoch", "2.5 epochs", "1 step", "400 steps"]
