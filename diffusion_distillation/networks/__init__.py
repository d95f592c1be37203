"""Networks, and the way from a config to a network and its denoiser."""
