"""The engine: runs the phases of a run, keeps its checkpoints, and deals with what goes wrong."""
