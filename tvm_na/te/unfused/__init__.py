"""Its two steps by themselves."""
