"""Programs that compile and link: which they are, and running them."""
