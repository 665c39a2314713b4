"""Plugins: the contract, the registry, checks and templates."""
