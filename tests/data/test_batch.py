import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bridle.data.batch import Sample, collate, valid_steps
from bridle.data.quarantine import BadFile
from bridle.errors import DataError

PATCH = (16, 16, 1)


def sample(length, index=0, shape=(1, 8, 1), value=None):
    channels, height, width = shape
    inputs = torch.randn(channels, length, height, width, generator=torch.Generator().manual_seed(index))
    return Sample(inputs if value is None else torch.full_like(inputs, value), length, 1000 + index, index)


@given(st.integers(1, 2000), st.integers(1, 40))
def test_a_step_is_valid_when_half_of_its_frames_are(length, patch_time):
    (steps,) = valid_steps(torch.tensor([length]), patch_time).tolist()
    covered = [min(patch_time, length - start) for start in range(0, length, patch_time)]
    # Frames that fill at least half of an even patch; an odd patch rounds its half down.
    assert steps == max(1, sum(frames + patch_time // 2 >= patch_time for frames in covered))


def test_batch_is_padded_with_zeros_to_the_longest():
    batch = collate([sample(40, 0), sample(25, 1), sample(3, 2)], PATCH)
    assert batch.inputs.shape == (3, 1, 48, 8, 1)
    assert batch.lengths.tolist() == [40, 25, 3]
    for row, length in zip(batch.inputs, (40, 25, 3), strict=True):
        assert torch.all(row[:, length:] == 0)
        assert torch.all(row[:, :length] != 0)
    assert torch.equal(batch.inputs[1, :, :25], sample(25, 1).inputs)
    assert batch.seeds.tolist() == [1000, 1001, 1002]
    assert batch.indices.tolist() == [0, 1, 2]
    assert {t.dtype for t in (batch.lengths, batch.seeds, batch.indices)} == {torch.int64}
    assert batch.inputs.dtype == torch.float32
    assert batch.bad == ()
    assert len(batch) == 3


def test_frames_beyond_the_last_valid_step_are_cut_and_not_counted():
    batch = collate([sample(39), sample(38)], PATCH)  # 39 = 2 * 16 + 7: the third step is less than half full
    assert batch.inputs.shape[2] == 32
    assert batch.lengths.tolist() == [32, 32]
    assert torch.equal(batch.inputs[0], sample(39).inputs[:, :32])


@given(st.lists(st.integers(1, 200), min_size=1, max_size=6), st.integers(1, 20))
def test_cutting_changes_no_number_of_valid_steps(lengths, patch_time):
    batch = collate([sample(length) for length in lengths], (patch_time, 16, 1))
    steps = valid_steps(batch.lengths, patch_time)
    assert torch.equal(steps, valid_steps(torch.tensor(lengths), patch_time))
    assert batch.inputs.shape[2] == int(steps.max()) * patch_time
    assert int(batch.lengths.max()) <= batch.inputs.shape[2]


def test_a_clip_does_not_depend_on_its_neighbours():
    alone = collate([sample(25, 1)], PATCH)
    among = collate([sample(90, 0), sample(25, 1)], PATCH)
    assert torch.equal(alone.inputs[0], among.inputs[1, :, :32])


def test_bad_files_are_dropped_and_listed():
    bad = BadFile("x.wav", "truncated")
    batch = collate([sample(16, 4), bad, sample(16, 6)], PATCH)
    assert batch.indices.tolist() == [4, 6]
    assert batch.bad == (bad,)


def test_a_batch_of_bad_files_only():
    bad = [BadFile(f"{i}.wav", "missing") for i in range(5)]
    with pytest.raises(DataError, match=r"all 5 files .*0\.wav \(missing\)"):
        collate(bad, PATCH)
    batch = collate(bad, PATCH, frame_shape=(1, 128, 1))
    assert batch.inputs.shape == (0, 1, 16, 128, 1)
    assert batch.lengths.shape == batch.seeds.shape == batch.indices.shape == (0,)
    assert batch.bad == tuple(bad)
    assert len(collate([], PATCH, frame_shape=(1, 128, 1))) == 0


def test_clips_of_different_shape_are_an_error():
    with pytest.raises(DataError, match="differ"):
        collate([sample(16), sample(16, shape=(1, 4, 1))], PATCH)


def test_to_moves_the_inputs_alone_and_pickle_keeps_all():
    batch = collate([sample(16), BadFile("x", "y")], PATCH)
    moved = batch.to("meta")
    assert moved.inputs.device.type == "meta"
    assert moved.lengths.device.type == moved.seeds.device.type == moved.indices.device.type == "cpu"
    assert moved.bad == batch.bad
    assert torch.equal(pickle.loads(pickle.dumps(batch)).inputs, batch.inputs)
