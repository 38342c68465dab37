"""Image files as the pixels that a model sees. Imports neither torch nor anything of this package."""
