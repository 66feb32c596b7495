"""Log-mel statistics."""

import numpy as np
import pytest
import torch

from bridle.errors import DataError
from bridle.eval.baseline import log_mel_statistics


def test_equal_numpy_and_ignore_the_order_of_frames():
    fbank = torch.randn(50, 7, generator=torch.Generator().manual_seed(0))
    expected = np.concatenate([fbank.numpy().mean(axis=0), fbank.numpy().std(axis=0)])
    np.testing.assert_allclose(log_mel_statistics(fbank).numpy(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(log_mel_statistics(fbank.flip(0)), log_mel_statistics(fbank))


def test_one_frame_has_no_deviation():
    assert log_mel_statistics(torch.tensor([[1.0, 2.0]])).tolist() == [1.0, 2.0, 0.0, 0.0]


@pytest.mark.parametrize("shape", [(0, 4), (4,), (1, 2, 3)])
def test_other_shapes_are_errors(shape):
    with pytest.raises(DataError, match="frames"):
        log_mel_statistics(torch.zeros(shape))
