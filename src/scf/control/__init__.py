"""The operator's hand: commands, the emergency lock, budgets."""
