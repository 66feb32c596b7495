"""Fine-tuning with labels: which clips, the run, its score."""
