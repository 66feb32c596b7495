"""Schedules as pure functions of the step, parameter groups and the optimiser."""
