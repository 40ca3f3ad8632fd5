"""What each process of kdispatch has: its output, its log, its descriptors."""
