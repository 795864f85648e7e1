"""Parts that keep the results of the program or pass them on, each in a process of its own."""
