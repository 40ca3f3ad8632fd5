"""This machine: the operating system, files that only the user may read, records of running agents."""
