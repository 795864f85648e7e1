"""Parts that store the results of the program or send them to other systems. Each part has its own process."""
