"""Studies, which train and measure: a comparison of methods, and the paper's claims."""
