"""Parts that store the results of the program or send them to other systems, each in a process of its own."""
