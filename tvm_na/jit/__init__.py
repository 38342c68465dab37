"""From a problem and a target to a loaded kernel."""
