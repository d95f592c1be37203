"""Networks, and how a config determines a network and its denoiser."""
