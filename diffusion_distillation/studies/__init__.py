"""Studies that train and evaluate: a comparison of methods, and the paper's claims."""
