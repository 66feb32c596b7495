"""A run as one HTML page: curves, codebooks, what codes mean, what the features are good for."""
