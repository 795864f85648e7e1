"""Speed of a model, time per layer, and capacity of a deployment: `vision bench`, `profile` and `plan`."""
