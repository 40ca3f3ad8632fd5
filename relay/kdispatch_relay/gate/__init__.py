"""The I/O around the switch: upgrades, access checks, and the connections of the sessions."""
