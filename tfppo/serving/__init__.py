"""From a policy to a SavedModel."""
