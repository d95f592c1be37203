"""Pictures: grids of samples, plots, and the page that a ladder ends with."""
