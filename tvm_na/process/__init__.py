"""What holds for a process as a whole."""
