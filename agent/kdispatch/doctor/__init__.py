"""What ``kdispatch doctor`` looks at: each check a function that returns findings."""
