"""Masks: exact counts, purity per clip, blocks, padding."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bridle.errors import ConfigError
from bridle.grid import PatchGrid, Subset
from bridle.masking import MaskConfig, draw_masks, drop_rows, num_masked

KINDS = ("random", "time", "frequency", "tube", "block")
GRID = PatchGrid(20, 8)


def chosen(subset: Subset, row: int) -> set[int]:
    assert subset.indices is not None
    indices = subset.indices[row]
    kept = indices if subset.valid is None else indices[subset.valid[row]]
    assert len(set(kept.tolist())) == len(kept)
    return set(kept.tolist())


@pytest.mark.parametrize("kind", KINDS)
def test_full_clips_are_divided_without_rest(kind: str) -> None:
    steps, seeds = torch.full((5,), 20), torch.arange(5)
    masks = draw_masks(MaskConfig(kind=kind), GRID, steps, seeds)  # type: ignore[arg-type]
    assert masks.visible.valid is None and masks.predicted.valid is None
    for row in range(5):
        visible, masked = chosen(masks.visible, row), chosen(masks.predicted, row)
        assert not visible & masked
        assert visible | masked == set(range(GRID.num_patches))
        assert len(masked) / GRID.num_patches == pytest.approx(0.8, abs=0.06)


@pytest.mark.parametrize("kind", KINDS)
@given(steps=st.lists(st.integers(1, 20), min_size=1, max_size=6), ratio=st.floats(0.05, 0.95), seed=st.integers(0, 2**60))
@settings(max_examples=40)
def test_padding_is_never_chosen_and_counts_follow_from_the_length(
    kind: str, steps: list[int], ratio: float, seed: int
) -> None:
    config = MaskConfig(kind=kind, mask_ratio=ratio, predict_ratio=0.5, num_masks=2)  # type: ignore[arg-type]
    valid_steps = torch.tensor(steps)
    masks = draw_masks(config, GRID, valid_steps, torch.arange(len(steps)) + seed)
    masked, predicted = num_masked(config, GRID, valid_steps)
    for clip, clip_steps in enumerate(steps):
        for row in (2 * clip, 2 * clip + 1):
            visible, asked = chosen(masks.visible, row), chosen(masks.predicted, row)
            assert max(visible | asked) < clip_steps * GRID.patches_per_step
            assert not visible & asked
            assert len(visible) == clip_steps * GRID.patches_per_step - int(masked[clip]) >= 1
            assert len(asked) == int(predicted[clip])


@pytest.mark.parametrize("kind", KINDS)
def test_a_clips_masks_do_not_depend_on_the_batch(kind: str) -> None:
    config = MaskConfig(kind=kind, num_masks=3)  # type: ignore[arg-type]
    steps, seeds = torch.tensor([20, 7, 12]), torch.tensor([11, 22, 33])
    together = draw_masks(config, GRID, steps, seeds)
    for clip in range(3):
        alone = draw_masks(config, PatchGrid(int(steps[clip]), 8), steps[clip : clip + 1], seeds[clip : clip + 1])
        for mask in range(3):
            assert chosen(together.visible, 3 * clip + mask) == chosen(alone.visible, mask)
            assert chosen(together.predicted, 3 * clip + mask) == chosen(alone.predicted, mask)


def test_masks_of_one_clip_differ_and_so_do_clips() -> None:
    masks = draw_masks(MaskConfig(num_masks=4), GRID, torch.full((2,), 20), torch.tensor([1, 2]))
    sets = [frozenset(chosen(masks.visible, row)) for row in range(8)]
    assert len(set(sets)) == 8


def test_random_masks_are_uniform() -> None:
    masks = draw_masks(MaskConfig(), GRID, torch.full((2000,), 20), torch.arange(2000))
    assert masks.visible.indices is not None
    share = torch.bincount(masks.visible.indices.flatten(), minlength=160) / 2000
    # 160 patches, standard error 0.009: 5 errors.
    assert (share - 0.2).abs().max() < 0.045


def test_time_and_frequency_masks_hide_whole_lines() -> None:
    steps, seeds = torch.full((1,), 20), torch.tensor([5])
    time = torch.zeros(160)
    time[list(chosen(draw_masks(MaskConfig(kind="time"), GRID, steps, seeds).visible, 0))] = 1
    assert set(time.reshape(20, 8).sum(1).tolist()) == {0.0, 8.0}
    frequency = torch.zeros(160)
    frequency[list(chosen(draw_masks(MaskConfig(kind="frequency"), GRID, steps, seeds).visible, 0))] = 1
    assert set(frequency.reshape(20, 8).sum(0).tolist()) == {0.0, 20.0}


def test_block_masks_are_clustered() -> None:
    def neighbours(kind: str) -> float:
        total = 0.0
        masks = draw_masks(MaskConfig(kind=kind), GRID, torch.full((50,), 20), torch.arange(50))  # type: ignore[arg-type]
        for row in range(50):
            picture = torch.zeros(160)
            picture[list(chosen(masks.visible, row))] = 1
            picture = picture.reshape(20, 8)
            total += float((picture[1:] * picture[:-1]).sum() + (picture[:, 1:] * picture[:, :-1]).sum()) / 32
        return total / 50

    assert neighbours("block") > 1.2 > 2 * neighbours("random")


@pytest.mark.parametrize("grid", [PatchGrid(1, 14, 14), PatchGrid(8, 7, 7)])
@pytest.mark.parametrize("kind", ["random", "tube", "block"])
def test_images_and_videos_are_divided_without_rest(kind: str, grid: PatchGrid) -> None:
    masks = draw_masks(MaskConfig(kind=kind), grid, torch.full((4,), grid.time), torch.arange(4))  # type: ignore[arg-type]
    for row in range(4):
        visible, masked = chosen(masks.visible, row), chosen(masks.predicted, row)
        assert not visible & masked
        assert visible | masked == set(range(grid.num_patches))
        assert len(masked) / grid.num_patches == pytest.approx(0.8, abs=0.02)


def test_a_tube_hides_the_same_places_at_all_times() -> None:
    masks = draw_masks(MaskConfig(kind="tube", mask_ratio=0.9), PatchGrid(8, 7, 7), torch.tensor([8, 5]), torch.tensor([3, 4]))
    for row, steps in enumerate((8, 5)):
        visible = torch.zeros(8 * 49)
        visible[list(chosen(masks.visible, row))] = 1
        assert set(visible.reshape(8, 49).sum(0).tolist()) == {0.0, float(steps)}
        assert int(visible.sum()) == 5 * steps


def test_visible_blocks_of_a_picture_have_height_and_width() -> None:
    config = MaskConfig(kind="block", mask_ratio=0.875, block=(1, 4, 6))
    masks = draw_masks(config, PatchGrid(1, 12, 16), torch.tensor([1]), torch.tensor([9]))
    picture = torch.zeros(192)
    picture[list(chosen(masks.visible, 0))] = 1
    whole = torch.nn.functional.avg_pool2d(picture.reshape(1, 1, 12, 16), (4, 6), 1)
    assert float(whole.max()) == 1.0  # 24 visible patches are one block of 4 x 6, or an own one and parts of others


def test_bad_settings_name_value_and_limit() -> None:
    for settings_ in ({"mask_ratio": 1.0}, {"predict_ratio": 0.0}, {"num_masks": 0}, {"block": (0, 3, 3)}):
        with pytest.raises(ConfigError, match=r"masks\."):
            MaskConfig(**settings_)  # type: ignore[arg-type]


def test_global_random_state_is_untouched() -> None:
    before = torch.get_rng_state()
    draw_masks(MaskConfig(kind="block"), GRID, torch.full((3,), 20), torch.arange(3))
    assert torch.equal(before, torch.get_rng_state())


def num_rows(size: int, ratio: float) -> int:
    return max(1, round(size * (1 - ratio)))


@pytest.mark.parametrize("grid", [PatchGrid(20, 8), PatchGrid(1, 6, 7), PatchGrid(4, 3, 5)])
@pytest.mark.parametrize("ratios", [(0.2, 0.25, 0.0), (0.5, 0.9, 0.3), (0.0, 0.0, 0.99)])
def test_whole_rows_of_every_axis_are_dropped(grid: PatchGrid, ratios: tuple[float, float, float]) -> None:
    steps = torch.tensor([grid.time, 1, max(1, grid.time // 2)])
    found = drop_rows(grid, steps, torch.tensor([5, 6, 7]), ratios)
    for row, clip_steps in enumerate(steps.tolist()):
        kept = torch.zeros(grid.num_patches, dtype=torch.bool)
        kept[sorted(chosen(found, row))] = True
        cube = kept.reshape(grid.shape)
        along = (cube.any(2).any(1), cube.any(2).any(0), cube.any(1).any(0))
        assert torch.equal(cube, along[0][:, None, None] & along[1][:, None] & along[2])
        assert not cube[clip_steps:].any()
        wanted = [num_rows(size, ratio) for size, ratio in zip((clip_steps, grid.height, grid.width), ratios, strict=True)]
        assert [int(axis.sum()) for axis in along] == wanted
        assert found.indices is not None
        indices = found.indices[row] if found.valid is None else found.indices[row][found.valid[row]]
        assert indices.tolist() == sorted(indices.tolist())


def test_dropped_rows_follow_from_the_seed_and_the_length_alone() -> None:
    steps, seeds, ratios = torch.tensor([20, 7, 12]), torch.tensor([11, 22, 33]), (0.3, 0.3, 0.0)
    together = drop_rows(GRID, steps, seeds, ratios)
    for clip in range(3):
        alone = drop_rows(PatchGrid(int(steps[clip]), 8), steps[clip : clip + 1], seeds[clip : clip + 1], ratios)
        assert chosen(alone, 0) == chosen(together, clip)
    turned = drop_rows(GRID, steps.flip(0), seeds.flip(0), ratios)
    assert [chosen(turned, 2 - clip) for clip in range(3)] == [chosen(together, clip) for clip in range(3)]


def test_every_row_is_dropped_as_often() -> None:
    num = 4000
    kept = torch.zeros(num, 5 * 4 * 3)
    found = drop_rows(PatchGrid(5, 4, 3), torch.full((num,), 5), torch.arange(num), (0.4, 0.25, 1 / 3))
    assert found.indices is not None and found.valid is None
    share = kept.scatter(1, found.indices, 1.0).mean(0)
    # The rows of the three axes are drawn on their own: 3/5 of 3/4 of 2/3; standard error 0.007.
    assert float((share - 0.3).abs().max()) < 0.035


def test_dropping_nothing_and_an_empty_batch() -> None:
    steps, seeds = torch.tensor([3, 3]), torch.tensor([1, 2])
    whole = drop_rows(PatchGrid(3, 2), steps, seeds, (0.0, 0.0, 0.0))
    assert whole.indices is not None and whole.valid is None
    assert torch.equal(whole.indices, torch.arange(6).expand(2, 6))
    none = torch.zeros(0, dtype=torch.int64)
    empty = drop_rows(PatchGrid(3, 2), none, none, (0.5, 0.5, 0.0))
    assert empty.gather(torch.zeros(0, 6, 4)).shape == (0, 1, 4)
    before = torch.get_rng_state()
    drop_rows(GRID, torch.full((3,), 20), torch.arange(3), (0.5, 0.5, 0.0))
    assert torch.equal(before, torch.get_rng_state())
