"""A run as an encoder for mteb, whose benchmarks are of sound (MAEB), pictures (MIEB) and films (MVEB).

::

    import mteb
    from bridle.adapters.mteb import MtebEncoder

    mteb.evaluate(MtebEncoder.from_run("runs/first"), mteb.get_benchmark("MAEB(v1, audio-only)"))

Interface: ``mteb.models.EncoderProtocol`` of mteb 2.26.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from bridle.adapters.batches import items_of
from bridle.errors import ConfigError
from bridle.inference import Model, load
from bridle.models.encoder import check_layers
from bridle.nn.pooling import Pooling, check_pooling, pooled_width
from bridle.run import clip_grid
from bridle.train.loop import Precision

if TYPE_CHECKING:
    from mteb.abstasks.task_metadata import TaskMetadata
    from mteb.models.model_meta import ModelMeta
    from mteb.types import Array, PromptType

_WEIGHT_BYTES = 4  # float32


class MtebEncoder:
    """A model with mteb's interface of an encoder.

    Args:
        model: of any medium; tasks must have that modality.
        pooling: of the embeddings, see :mod:`bridle.nn.pooling`.
        layer: 1 to the model's depth; None for the last one.
        name: under which mteb keeps results, ``organisation/name``; None for ``bridle/`` and the recipe.

    Raises:
        ConfigError: mteb is not installed, there is no such pooling or layer, or the name has no slash.
    """

    def __init__(self, model: Model, *, pooling: Pooling = "mean", layer: int | None = None, name: str | None = None) -> None:
        check_pooling(pooling, model.config.medium.timed)
        self.model = model
        self.pooling: Pooling = pooling
        self.layer = model.depth if layer is None else layer
        check_layers((self.layer,), model.depth)
        self._meta = _describe(model, pooling, self.layer, f"bridle/{model.config.recipe}" if name is None else name)

    @classmethod
    def from_run(
        cls,
        run: str | Path,
        *,
        pooling: Pooling = "mean",
        layer: int | None = None,
        device: str | torch.device | None = None,
        precision: Precision = "fp32",
    ) -> MtebEncoder:
        """The encoder of a run folder, named ``bridle/FOLDER``.

        Args:
            run: the folder given to ``pretrain --out``.
            pooling: as for the class.
            layer: as for the class.
            device: as for :func:`bridle.load`.
            precision: as for :func:`bridle.load`.

        Raises:
            RunError: there is no run, no weights yet, or they were written by another version.
            ConfigError: as for the class; or there is no such device.
        """
        model = load(run, device, precision)
        return cls(model, pooling=pooling, layer=layer, name=f"bridle/{Path(run).resolve().name}")

    @property
    def mteb_model_meta(self) -> ModelMeta:
        """Kept with results; the revision is the model's fingerprint, pooling and layer are ``experiment_kwargs``."""
        return self._meta

    def encode(
        self,
        inputs: DataLoader[Any],
        *,
        task_metadata: TaskMetadata,
        hf_split: str,
        hf_subset: str,
        prompt_type: PromptType | None = None,
        **kwargs: Any,
    ) -> NDArray[np.float32]:
        """Embeddings of the items of a loader in their order.

        Args:
            inputs: batches with a list under the medium's name: files or what is in memory, see ``docs/adapters.md``.
            task_metadata: not used, nor are the split, the subset and the prompt type.
            hf_split: of the task's set.
            hf_subset: of the task's set.
            prompt_type: of retrieval tasks.
            **kwargs: mteb's ``precision`` must be float32; ``show_progress_bar`` is on by default; others play no part.

        Returns:
            (n, X) float32; X is ``mteb_model_meta.embed_dim``.

        Raises:
            DataError: the task gives another modality, or an item is nothing that the medium knows.
            DecodeError: a file cannot be read.
            ConfigError: another precision is asked for.
        """
        from tqdm.auto import tqdm

        precision = kwargs.get("precision") or "float32"
        if precision != "float32":
            raise ConfigError(f"precision is {precision!r}; the embeddings are float32: leave it out")
        config = self.model.config
        rate = config.audio.fbank.sample_rate if config.audio else 0
        total = len(inputs.dataset) if hasattr(inputs.dataset, "__len__") else None
        with TemporaryDirectory(prefix="bridle-") as folder:
            items = items_of(inputs, config.medium.name, rate, Path(folder))
            shown = tqdm(items, total=total, desc=f"Encoding {hf_split}", disable=not kwargs.get("show_progress_bar", True))
            vectors: NDArray[np.float32] = self.model.embed_all(shown, self.pooling, self.layer).numpy()
        return vectors

    def similarity(self, embeddings1: Array, embeddings2: Array) -> Array:
        """Cosine of each of n embeddings (n, X) with each of m others (m, X): (n, m)."""
        from mteb.similarity_functions import cos_sim

        return cos_sim(embeddings1, embeddings2)

    def similarity_pairwise(self, embeddings1: Array, embeddings2: Array) -> Array:
        """Cosine of each of n embeddings (n, X) with its counterpart (n, X): (n,)."""
        from mteb.similarity_functions import pairwise_cos_sim

        return pairwise_cos_sim(embeddings1, embeddings2)


def _describe(model: Model, pooling: Pooling, layer: int, name: str) -> ModelMeta:
    try:
        from mteb.models.model_meta import ModelMeta, ScoringFunction
    except ImportError as error:
        raise ConfigError("MtebEncoder needs mteb, which is not installed: pip install 'bridle[mteb]'") from error
    if "/" not in name:
        raise ConfigError(f"name is {name!r}; mteb wants organisation/name, such as 'bridle/{name}'")
    num_parameters = sum(weight.numel() for weight in model.networks.encoder.parameters())
    return ModelMeta(
        loader=None,
        name=name,
        revision=model.fingerprint,
        release_date=None,
        languages=None,
        n_parameters=num_parameters,
        memory_usage_mb=num_parameters * _WEIGHT_BYTES / 2**20,
        max_tokens=None,
        embed_dim=pooled_width(model.width, clip_grid(model.config), pooling),
        license=None,
        open_weights=None,
        public_training_code=None,
        public_training_data=None,
        framework=["PyTorch"],
        similarity_fn_name=ScoringFunction.COSINE,
        use_instructions=False,
        training_datasets=None,
        modalities=[model.config.medium.name],
        experiment_kwargs={"pooling": pooling, "layer": layer},
    )
