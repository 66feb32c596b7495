"""Views of a batch: picking valid patches and putting them back."""

import pytest
import torch
from reference.batches import ENCODER, batch

from bridle.objectives.view import grid_of, whole_view


@pytest.mark.parametrize("frames", [(16, 16), (16, 9, 4)])
def test_pick_and_spread_are_inverse_on_valid_patches(frames: tuple[int, ...]) -> None:
    data = batch(*frames)
    view = whole_view(data, ENCODER.patch)
    values = torch.randn(*view.patches.values.shape[:2], 5, generator=torch.Generator().manual_seed(0))
    picked = view.pick(values)
    expected = [row[: steps * 2] for row, steps in zip(values, view.steps.tolist(), strict=True)]
    assert torch.equal(picked, torch.cat(expected))
    back = view.spread(picked)
    assert torch.equal(view.pick(back), picked)
    assert float(back.abs().sum()) == pytest.approx(float(picked.abs().sum()))
    assert view.patches.grid == grid_of(data, ENCODER.patch)


def test_gradients_flow_through_pick_and_spread() -> None:
    view = whole_view(batch(16, 8), ENCODER.patch)
    values = torch.ones(*view.patches.values.shape[:2], 3, requires_grad=True)
    view.spread(view.pick(values)).sum().backward()
    assert values.grad is not None
    assert view.every.valid is not None
    assert torch.equal(values.grad[..., 0].bool(), view.every.valid)
