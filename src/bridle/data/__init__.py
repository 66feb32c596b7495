"""Files to batches: what there is (``manifest``), its order (``sampler``), clips (``dataset``) and the ``batch``."""
