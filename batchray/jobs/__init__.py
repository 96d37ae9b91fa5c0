"""Running jobs: the window, attempts, group commits, control, and the public handle."""
