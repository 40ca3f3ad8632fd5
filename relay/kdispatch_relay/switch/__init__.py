"""The switch: live hosts and sessions, the choice of a host, and the routing of frames. Sans-I/O."""
