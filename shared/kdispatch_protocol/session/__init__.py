"""Parts of a session that both ends use: its queue, its pace, its deadlines."""
