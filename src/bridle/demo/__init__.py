"""What ``bridle demo`` stands on: labelled sounds, pictures and films, and how many steps fit into its time."""
