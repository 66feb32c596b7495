"""The parts of the page: each takes what was found and gives HTML."""
