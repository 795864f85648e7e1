"""The web page: a process that serves it, the data that it shows, and the files that a browser loads."""
