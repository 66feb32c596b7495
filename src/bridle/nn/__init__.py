"""Layers: attention, blocks, positions, patches, pooling. They know no medium and no loss."""
