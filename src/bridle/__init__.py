"""bridle: your own encoder, its discrete tokens and its embeddings, from a folder of unlabelled recordings."""
