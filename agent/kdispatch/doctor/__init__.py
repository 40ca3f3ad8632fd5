"""The checks of ``kdispatch doctor``: each is a function that returns findings."""
