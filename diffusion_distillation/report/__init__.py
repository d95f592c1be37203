"""Pictures: image grids, plots, sample folders, and a ladder's HTML page. Nothing here trains."""
