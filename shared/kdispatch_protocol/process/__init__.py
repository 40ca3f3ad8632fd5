"""Parts of every kdispatch process: its output, its log, its descriptors."""
