"""The commands, one a module: what it does, its flags, and one call of a stage."""
