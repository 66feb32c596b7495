"""Objectives: models and losses joined into the named losses of one training step."""
