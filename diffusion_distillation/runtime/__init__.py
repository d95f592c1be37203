"""The machine: devices, processes, files, signals and the terminal. Nothing here changes a result."""
