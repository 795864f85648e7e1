"""Implementation of `vision chaos`, which causes faults, and checks that the program survives them."""
