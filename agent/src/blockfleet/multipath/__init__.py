"""Several paths to one logical unit: identity, policies and the fence."""
