"""Plugins: their contract (`api`), their registry, checks of them (`testing`) and templates (`scaffold`)."""
