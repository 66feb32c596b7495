"""What --help shows."""

from __future__ import annotations

import importlib

import pytest

from bridle import cli
from bridle.commands.arguments import recipe_list
from bridle.commands.finetune import FINETUNING
from bridle.recipes import RECIPES


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_a_terminal_of_80_columns_is_wide_enough(name: str) -> None:
    module = importlib.import_module(f"bridle.commands.{cli._MODULES.get(name, name)}")
    shown = getattr(module, "_DESCRIPTION", "") + "\n" + getattr(module, "_USAGE", "")
    assert "bridle " + name in shown
    assert [line for line in shown.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("recipes", [RECIPES, FINETUNING], ids=["pretrain", "finetune"])
def test_recipes_are_listed_with_what_they_are_for(recipes: dict[str, object]) -> None:
    listed = recipe_list(recipes)
    assert all(len(line) < 80 for line in listed.splitlines())
    found = [line.split()[0] for line in listed.splitlines() if not line.startswith("   ")]
    assert found == list(recipes)
    assert "`" not in listed
