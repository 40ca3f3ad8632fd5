"""The switch: who is live, whose turn it is, and which frame goes where. Sans-I/O but for gate.py."""
