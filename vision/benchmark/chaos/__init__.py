"""`vision chaos`: faults of cameras, processes, disks, and subscribers, and checks that the program survives them."""
