"""Looking at recordings before training: what there is, what is broken, what a recipe makes of it and how long it takes."""
