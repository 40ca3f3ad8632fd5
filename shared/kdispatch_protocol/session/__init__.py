"""What each session has at both ends: its queue, its pace, its deadlines."""
