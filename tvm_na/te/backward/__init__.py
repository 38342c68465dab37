"""Its gradients."""
